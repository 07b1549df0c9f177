// SPDX-License-Identifier: MPL-2.0
//! LoRA files: merged exactly as written, refused with one clear error when they do not fit, the same from an element.

mod common;
#[path = "support/filter.rs"]
mod filter;
mod support;

use std::path::{Path, PathBuf};

use common::fixture;
use gst::prelude::*;
use gstdit::models::transformer_wan::{
    AttentionPattern, Timestep, TransformerInput, WanTransformer3DModel,
};
use gstdit::nn::attention::KvAccess;
use gstdit::pipeline::{FolderInfo, Pipeline};
use gstdit::torch::Precision;
use gstdit::weights::lora::Adapters;
use gstdit::weights::{Checkpoint, Parameters, Source, safetensors};
use support::{Rig, TINY, folder_with, init, pixels, played};
use tch::{Device, Kind, Tensor};

const LAYER: &str = "blocks.1.ffn.net.0.proj";
const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Writes tensors to a file of that name.
fn write(folder: &Path, name: &str, tensors: &[(String, Tensor)]) -> PathBuf {
    let path = folder.join(name);
    safetensors::write(&path, tensors.iter().map(|(name, t)| (name.clone(), t))).unwrap();
    path
}

/// Size `[out, in]` of [`LAYER`] in a fixture.
fn size(fixture_name: &str) -> [i64; 2] {
    let folder = fixture(fixture_name).join("transformer");
    let checkpoint = Checkpoint::open(&folder, "diffusion_pytorch_model").unwrap();
    let shape = checkpoint.shape(&format!("{LAYER}.weight")).unwrap();
    [shape[0], shape[1]]
}

/// A pair of matrices of rank 2 for [`LAYER`].
fn pair([output, input]: [i64; 2]) -> (Tensor, Tensor) {
    tch::manual_seed(3);
    (Tensor::randn([2, input], OPTIONS), Tensor::randn([output, 2], OPTIONS))
}

fn load(info: &FolderInfo) -> Result<Pipeline, String> {
    Pipeline::load(info, Device::Cpu, Precision::F32, &mut |_, _| true).map_err(|e| e.to_string())
}

/// The one error that opening the fixture with a LoRA gives.
fn error(lora: &Path) -> String {
    let info = FolderInfo::open(&fixture("t2v_public")).unwrap().with_lora(lora, 1.0).unwrap();
    let text = load(&info).unwrap_err();
    println!("{text}");
    assert!(text.contains(lora.to_str().unwrap()), "{text}");
    text
}

/// Lets a folder restyle with a file `restyle.safetensors` in it.
fn name_restyle_lora(model: &Path) {
    let path = model.join("model_index.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut index: serde_json::Value = serde_json::from_str(&text).unwrap();
    index["_dit"]["restyle_lora"] = "restyle.safetensors".into();
    std::fs::write(path, index.to_string()).unwrap();
}

/// A whole forward pass of the pipeline's transformer.
fn flow(pipeline: &Pipeline) -> Tensor {
    forward(&pipeline.transformers()[0], &pipeline.encode_prompt_to("a prompt", 16).unwrap())
}

fn forward(model: &WanTransformer3DModel, embeds: &Tensor) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    tch::manual_seed(5);
    let latents = Tensor::randn([1, model.config().in_channels, 2, 4, 4], OPTIONS);
    let context = model.context(embeds, None);
    let layout = model.layout([2, 4, 4], 0, AttentionPattern::Full);
    model.forward(TransformerInput {
        hidden_states: &latents,
        timestep: Timestep::PerFrame(&Tensor::from_slice(&[500.0f32, 500.0]).view([1, 2])),
        context: &context,
        layout: &layout,
        kv: KvAccess::None,
    })
}

#[test]
fn merging_is_adding_the_product() {
    let folder = tempfile::tempdir().unwrap();
    let (down, up) = pair(size("t2v_public"));
    let alpha = Tensor::from_slice(&[1.0f32]);
    let lora = write(
        folder.path(),
        "lora.safetensors",
        &[
            (format!("transformer.{LAYER}.lora_A.weight"), down.shallow_clone()),
            (format!("transformer.{LAYER}.lora_B.weight"), up.shallow_clone()),
            (format!("transformer.{LAYER}.alpha"), alpha),
        ],
    );
    // The same by hand, in a copy of the folder: alpha 1 at rank 2 halves it, the scale takes 0.6 of that.
    let changed = support::folder_with(folder.path(), "t2v_public", TINY);
    let transformer = changed.join("transformer");
    std::fs::remove_file(&transformer).unwrap();
    std::fs::create_dir(&transformer).unwrap();
    let source = fixture("t2v_public").join("transformer");
    std::fs::copy(source.join("config.json"), transformer.join("config.json")).unwrap();
    let checkpoint = Checkpoint::open(&source, "diffusion_pytorch_model").unwrap();
    let tensors: Vec<(String, Tensor)> = checkpoint
        .names()
        .map(|name| {
            let tensor = checkpoint.raw(name).unwrap().to_kind(Kind::Float);
            let merged = name == format!("{LAYER}.weight");
            (name.to_owned(), if merged { tensor + up.matmul(&down) * 0.3 } else { tensor })
        })
        .collect();
    write(&transformer, "diffusion_pytorch_model.safetensors", &tensors);

    let info = FolderInfo::open(&fixture("t2v_public")).unwrap();
    let plain = flow(&load(&info).unwrap());
    let merged = flow(&load(&info.clone().with_lora(&lora, 0.6).unwrap()).unwrap());
    let by_hand = flow(&load(&FolderInfo::open(&changed).unwrap()).unwrap());
    let off = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
    assert!(off(&merged, &by_hand) < 1e-5, "{}", off(&merged, &by_hand));
    assert!(off(&merged, &plain) > 1e-3);
    let without = flow(&load(&info.with_lora(&lora, 0.0).unwrap()).unwrap());
    assert_eq!(off(&without, &plain), 0.0);
}

#[test]
fn what_restyles_opens_a_folder_with_its_own_lora_for_that() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder_with(folder.path(), "t2v_public", TINY);
    name_restyle_lora(&model);
    let named = |up: &Tensor| {
        let (down, _) = pair(size("t2v_public"));
        [
            (format!("{LAYER}.lora_A.weight"), down),
            (format!("{LAYER}.lora_B.weight"), up.shallow_clone()),
        ]
    };
    let (_, up) = pair(size("t2v_public"));
    let info = FolderInfo::open(&model).unwrap();
    let missing = info.clone().for_restyling().unwrap_err().to_string();
    assert!(missing.contains("_dit.restyle_lora") && missing.contains("restyle.safetensors"));
    let own = write(&model, "restyle.safetensors", &named(&up));
    let other = write(folder.path(), "other.safetensors", &named(&(&up * 2.0)));
    let off = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
    let of = |info: FolderInfo| flow(&load(&info).unwrap());
    let with =
        |path: &Path, scale| FolderInfo::open(&model).unwrap().with_lora(path, scale).unwrap();
    let plain = of(info.clone());
    let restyling = of(info.clone().for_restyling().unwrap());
    assert!(off(&restyling, &plain) > 1e-3);
    assert_eq!(off(&restyling, &of(with(&own, 1.0))), 0.0);
    let half = {
        let mut info = FolderInfo::open(&model).unwrap();
        info.native.restyle_lora_scale = 0.5;
        of(info.for_restyling().unwrap())
    };
    assert_eq!(off(&half, &of(with(&own, 0.5))), 0.0);
    // One on top of the other is their sum.
    let both = of(info.for_restyling().unwrap().with_lora(&other, 1.0).unwrap());
    assert!(off(&both, &of(with(&own, 3.0))) < 1e-4);
    assert!(off(&both, &restyling) > 1e-3);
}

#[test]
fn a_merged_lora_does_what_its_adapters_did_in_training() {
    let folder = tempfile::tempdir().unwrap();
    let info = FolderInfo::open(&fixture("t2v_public")).unwrap();
    let transformer = info.folder.join("transformer");
    let checkpoint = Checkpoint::open(&transformer, "diffusion_pytorch_model").unwrap();
    let wanted = |layer: &str| layer.contains("attn") || layer.contains("ffn");
    let adapters = Adapters::new(3, 6.0, wanted, Parameters::default());
    let source = Source::frozen(checkpoint).adapted(adapters);
    let model =
        WanTransformer3DModel::new(&source.weights(Kind::Float, Device::Cpu), &info.transformer)
            .unwrap();
    let plain = load(&info).unwrap();
    let embeds = plain.encode_prompt_to("a prompt", 16).unwrap();
    let off = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
    // B begins at zero: nothing is changed yet.
    assert_eq!(off(&forward(&model, &embeds), &flow(&plain)), 0.0);
    let named = source.parameters().unwrap().named();
    // Two attentions of four layers and a feed-forward of two, in each of two blocks, two matrices each.
    assert_eq!(named.len(), 2 * (2 * 4 + 2) * 2);
    tch::no_grad(|| {
        for (name, mut tensor) in source.parameters().unwrap().named() {
            if name.contains("lora_B") {
                let _ = tensor.normal_(0.0, 0.1);
            }
        }
    });
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for (name, tensor) in named {
        let layer = name.trim_end_matches(".lora_A.weight").to_owned();
        if layer != name {
            tensors.push((format!("transformer.{layer}.alpha"), Tensor::from_slice(&[6.0f32])));
        }
        tensors.push((format!("transformer.{name}"), tensor));
    }
    let lora = write(folder.path(), "lora.safetensors", &tensors);
    let merged = flow(&load(&info.with_lora(&lora, 1.0).unwrap()).unwrap());
    let trained = forward(&model, &embeds);
    assert!(off(&merged, &trained) < 1e-4, "{}", off(&merged, &trained));
    assert!(off(&merged, &flow(&plain)) > 1e-3);
}

#[test]
fn files_that_do_not_fit_are_named_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let [output, input] = size("t2v_public");
    let (down, up) = pair([output, input]);
    let file = |name: &str, tensors: &[(&str, &Tensor)]| {
        let named: Vec<(String, Tensor)> =
            tensors.iter().map(|(name, t)| ((*name).to_owned(), t.shallow_clone())).collect();
        write(folder.path(), name, &named)
    };
    let (a, b) = (format!("transformer.{LAYER}.lora_A.weight"), format!("{LAYER}.lora_B.weight"));
    let strange = file("strange.safetensors", &[("blocks.0.diff_b", &down)]);
    assert!(error(&strange).contains("blocks.0.diff_b"));
    let half = file("half.safetensors", &[(&a, &down)]);
    assert!(error(&half).contains(LAYER));
    let wide = Tensor::zeros([2, input + 1], OPTIONS);
    let shapes = error(&file("shapes.safetensors", &[(&a, &wide), (&b, &up)]));
    assert!(shapes.contains(&format!("[2, {}]", input + 1)) && shapes.contains(&a), "{shapes}");
    let far = file(
        "far.safetensors",
        &[
            ("transformer.blocks.77.attn1.to_q.lora_A.weight", &down),
            ("transformer.blocks.77.attn1.to_q.lora_B.weight", &up),
        ],
    );
    assert!(error(&far).contains("transformer.blocks.77.attn1.to_q"));
    let nan = file("nan.safetensors", &[(&a, &down), (&b, &(&up * f64::NAN))]);
    assert!(error(&nan).contains("NaN"));
    std::fs::write(folder.path().join("text.safetensors"), "not one").unwrap();
    assert!(error(&folder.path().join("text.safetensors")).contains("not a valid safetensors"));
    let missing = FolderInfo::open(&fixture("t2v_public")).unwrap();
    let missing = missing.with_lora(Path::new("/no/lora.safetensors"), 1.0).unwrap_err();
    assert!(missing.to_string().contains("/no/lora.safetensors"), "{missing}");
}

#[test]
fn elements_take_a_lora_and_its_scale() {
    let _guard = init();
    let folder = tempfile::tempdir().unwrap();
    let model = folder_with(folder.path(), "ti2v_public", TINY);
    let (down, up) = pair(size("ti2v_public"));
    let lora = write(
        folder.path(),
        "lora.safetensors",
        &[(format!("{LAYER}.lora_A.weight"), down), (format!("{LAYER}.lora_B.weight"), up)],
    );
    let run =
        |properties: &str| played(&model, &format!("num-buffers=5 {properties}"), "video/x-raw");
    let plain = run("");
    let with = run(&format!("lora={}", lora.display()));
    let off = run(&format!("lora={} lora-scale=0", lora.display()));
    assert_ne!(pixels(&plain), pixels(&with));
    assert_eq!(pixels(&plain), pixels(&off));
    let rig = Rig::new(&model, "lora=/no/such.safetensors", "video/x-raw");
    assert!(!rig.play());
    assert_eq!(rig.errors().len(), 1, "{:?}", rig.errors());
    assert!(rig.errors()[0].contains("/no/such.safetensors: no such file"), "{:?}", rig.errors());
}

#[test]
fn a_filter_alone_restyles_with_the_folders_own_lora() {
    let _guard = init();
    let folder = tempfile::tempdir().unwrap();
    let model = filter::model(folder.path(), 2);
    let bytes = |frames: Vec<support::Frame>| -> Vec<Vec<u8>> {
        frames.into_iter().map(|frame| frame.data).collect()
    };
    let source = || bytes(played(&model, "num-buffers=5", "video/x-raw"));
    let restyled = |properties: &str| {
        bytes(filter::restyled(&model, &format!("{} {properties}", filter::EIGHT), 6))
    };
    let before = (source(), restyled(""));
    let (down, up) = pair(size("ti2v_public"));
    let tensors =
        [(format!("{LAYER}.lora_A.weight"), down), (format!("{LAYER}.lora_B.weight"), up)];
    let lora = write(&model, "restyle.safetensors", &tensors);
    let asked_for = restyled(&format!("lora={}", lora.display()));
    name_restyle_lora(&model);
    assert_eq!(source(), before.0);
    assert_ne!(restyled(""), before.1);
    assert_eq!(restyled(""), asked_for);
    std::fs::remove_file(lora).unwrap();
    assert_eq!(source(), before.0);
    let rig = filter::Rig::new(&model, filter::EIGHT, filter::CAPS);
    assert!(rig.pipeline.set_state(gst::State::Playing).is_err());
    let errors = rig.errors();
    assert!(errors.len() == 1 && errors[0].contains("_dit.restyle_lora"), "{errors:?}");
}
