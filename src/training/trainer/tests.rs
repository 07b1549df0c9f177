// SPDX-License-Identifier: MPL-2.0
use super::super::teacher::Held;
use super::*;
use crate::pipeline::{FolderInfo, torch_noise};

/// Parameters that start from the default model, and what models of them are built from.
pub(in super::super) fn of_the_default_model() -> (Sources, Blueprint) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default");
    let info = FolderInfo::open(&folder).unwrap();
    let blueprint = Blueprint {
        transformer: info.transformer,
        text_encoder: info.text_encoder,
        tokenizer: folder.join("tokenizer"),
        max_sequence_length: info.native.max_sequence_length,
        predicts_sample: true,
        guidance_scale: 4.0,
        half_attention: false,
        teacher: None,
        device: Device::Cpu,
    };
    (Sources::starting_from(&folder).unwrap(), blueprint)
}

pub(in super::super) fn captions(blueprint: &Blueprint, captions: &[&str]) -> Captions {
    let tokenizer = PromptTokenizer::from_folder(&blueprint.tokenizer).unwrap();
    let captions: Vec<String> = captions.iter().copied().map(String::from).collect();
    Captions::new(&tokenizer, &captions, blueprint.max_sequence_length).unwrap()
}

pub(in super::super) fn off(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

/// As the autoencoder does by the test beside the optimiser.
#[test]
fn transformer_and_text_encoder_follow_their_parameters() {
    let (sources, blueprint) = of_the_default_model();
    let trained = sources.models(&blueprint).unwrap();
    let latents = torch_noise(1, &[1, 48, 1, 4, 4]);
    let levels = Tensor::from_slice(&[0.8f32]).view([1, 1]);
    let caption = captions(&blueprint, &["a star"]);
    let made = |models: &Models| {
        let context = models.context(&caption);
        let layout = models.transformer.layout([1, 4, 4], 0, AttentionPattern::Full);
        models.predict(&latents, &levels, &context, &layout).unwrap().0
    };
    let mut optimiser = AdamW::new(sources.named(), Hyper::default());
    let (embeds, before) = (trained.embed(&caption).detach(), made(&trained).detach());
    made(&trained).square().mean(Kind::Float).backward();
    optimiser.step(1e-3);
    let _no_grad = tch::no_grad_guard();
    let anew = sources.models(&blueprint).unwrap();
    assert!(off(&trained.embed(&caption), &embeds) > 1e-3);
    assert!(off(&made(&trained), &before) > 1e-2);
    assert!(off(&made(&trained), &made(&anew)) < 1e-5);
}

#[test]
fn what_is_held_is_measured_by_the_teacher_and_the_rest_by_the_truth() {
    let (sources, mut blueprint) = of_the_default_model();
    (blueprint.teacher, blueprint.guidance_scale) = (Some((PathBuf::new(), 1.5)), 1.0);
    let mut worker = Worker {
        models: sources.models(&blueprint).unwrap(),
        teacher: Some(Teacher::new(&sources, &blueprint).unwrap()),
        layouts: Layouts::new(),
        batches: (),
        share: 1.0,
    };
    let latents = torch_noise(1, &[2, 48, 2, 4, 4]);
    let mut loss = |held: [bool; 4]| {
        let held = Held {
            frames: Some(Tensor::from_slice(&held).view([2, 1, 2, 1, 1])),
            remembered: latents.shallow_clone(),
            redrawn: None,
            beginnings: None,
        };
        let batch = Batch {
            held: Some(held),
            shown: latents.shallow_clone(),
            guided: Tensor::zeros([0], (Kind::Int64, Device::Cpu)),
            latents: latents.shallow_clone(),
            weights: Tensor::ones([2, 1, 2, 4, 4], (Kind::Float, Device::Cpu)),
            levels: Tensor::full([2, 2], 0.7, (Kind::Float, Device::Cpu)),
            captions: captions(&blueprint, &["a star", "a red circle"]),
            truth: None,
            pattern: AttentionPattern::Full,
        };
        worker.loss(&batch).unwrap().0.double_value(&[])
    };
    assert!(loss([true; 4]) < 1e-6);
    // Clip by clip, frame by frame.
    for at in 0..4 {
        assert!(loss(std::array::from_fn(|frame| frame != at)) > 1e-2, "{at}");
    }
}

/// What is learnt is the truth and this: the output that reproduces itself is what guidance of that scale makes.
#[test]
fn learnt_guidance_is_a_share_of_the_way_from_no_caption() {
    let (sources, blueprint) = of_the_default_model();
    let models = sources.models(&blueprint).unwrap();
    let pattern = AttentionPattern::NextBlock { block_latent_frames: 1 };
    let latents = torch_noise(1, &[4, 48, 3, 4, 4]);
    let said = captions(&blueprint, &["a red circle over the sea", "", "a star", "sand"]);
    let guided = Batch::guided(&said, &[false, false, true, false]);
    assert_eq!(Vec::<i64>::try_from(&guided).unwrap(), [0, 3]);
    let batch = Batch {
        held: None,
        shown: latents.shallow_clone(),
        guided,
        latents,
        weights: Tensor::ones([4, 1, 3, 4, 4], (Kind::Float, Device::Cpu)),
        levels: Tensor::from_slice(&[
            0.0f32, 0.7, 0.5, 0.9, 0.3, 1.0, 0.4, 0.6, 0.8, 0.2, 0.9, 0.6,
        ])
        .view([4, 3]),
        captions: said,
        truth: None,
        pattern,
    };
    let _no_grad = tch::no_grad_guard();
    let noised = Noised::new(&batch, &batch.latents);
    assert_eq!((noised.before, noised.latents.size()[2]), (2, 5));
    let layout = models.transformer.layout([5, 4, 4], 0, pattern);
    let predict = |captions: &Captions| {
        let context = models.context(captions);
        let (predicted, _) =
            models.predict(&noised.latents, &noised.levels, &context, &layout).unwrap();
        predicted.narrow(2, 2, 3)
    };
    let nothing = captions(&blueprint, &[""; 4]);
    let (positive, negative) = (predict(&batch.captions), predict(&nothing));
    let guidance = |output: &Tensor| models.guidance(&batch, &noised, output, &layout).unwrap();
    let learnt = guidance(&positive);
    assert_eq!(learnt.size()[0], 2);
    for (at, clip) in [0, 3].into_iter().enumerate() {
        let expected = (positive.get(clip) - negative.get(clip)) * 0.75;
        assert!(off(&learnt.get(at as i64), &expected) < 1e-5);
        assert!(expected.abs().max().double_value(&[]) > 1e-2);
    }
    // Truth 0: the output o with o = 0 + 0.75 (o - n) is n + 4 (0 - n).
    let own = &negative - &negative * 4.0;
    assert!(off(&guidance(&own).get(0), &own.get(0)) < 1e-4);
}
