// SPDX-License-Identifier: MPL-2.0
//! What comes in pieces equals what comes at once, and a stream depends on its seed and prompts alone.

mod common;

use std::cell::Cell;

use common::{FOLDERS, deviation, fixture, load, rolling_folders, with_native};
use gstdit::error::Error;
use gstdit::models::transformer_wan::{
    AttentionPattern, Timestep, TransformerInput, WanTransformer3DModel,
};
use gstdit::nn::attention::{KvAccess, KvCache};
use gstdit::nn::conv3d::FeatureCaches;
use gstdit::pipeline::{
    Chunk, Controls, FolderInfo, NoiseKind, Pipeline, Request, RgbFrame, Rollout, Settings,
};
use gstdit::torch::Precision;
use serde_json::json;
use tch::{Device, Kind, Tensor};

/// f32 rounding, with sums in another order.
const TOLERANCE: f64 = 1e-5;
fn assert_close(whole: &Tensor, pieces: &[Tensor], what: &str) {
    let off = deviation(whole, &Tensor::cat(pieces, 2)).unwrap();
    assert!(off < TOLERANCE, "{what}: off by {off:.1e}");
}

#[test]
fn video_encodes_in_pieces() {
    let _guard = tch::no_grad_guard();
    for name in FOLDERS {
        let pipeline = load(&fixture(name));
        let video = Tensor::rand([1, 3, 17, 32, 32], (Kind::Float, Device::Cpu)) * 2.0 - 1.0;
        let whole = pipeline.vae().encode(&video, &mut FeatureCaches::default()).mean;
        for first in [1, 5, 9] {
            for later in [4, 8, 12] {
                let mut caches = FeatureCaches::default();
                let (mut pieces, mut start, mut length) = (Vec::new(), 0, first);
                while start < 17 {
                    let piece = video.narrow(2, start, length.min(17 - start));
                    pieces.push(pipeline.vae().encode(&piece, &mut caches).mean);
                    (start, length) = (start + length, later);
                }
                assert_close(&whole, &pieces, &format!("{name}, {first} frames, then {later}"));
            }
        }
    }
}

#[test]
fn latents_decode_in_pieces() {
    let _guard = tch::no_grad_guard();
    for name in FOLDERS {
        let pipeline = load(&fixture(name));
        let channels = pipeline.info().vae.z_dim;
        let latents = Tensor::randn([1, channels, 6, 3, 2], (Kind::Float, Device::Cpu));
        let whole = pipeline.vae().decode(&latents, &mut FeatureCaches::default());
        for length in 1..=6 {
            let mut caches = FeatureCaches::default();
            let pieces: Vec<Tensor> = (0..6)
                .step_by(length as usize)
                .map(|start| latents.narrow(2, start, length.min(6 - start)))
                .map(|piece| pipeline.vae().decode(&piece, &mut caches))
                .collect();
            assert_close(&whole, &pieces, &format!("{name}, {length} latent frames at a time"));
        }
    }
}

/// One evaluation with a timestep by frame.
fn flow(
    model: &WanTransformer3DModel,
    latents: &Tensor,
    timestep: &Tensor,
    (frame_offset, pattern): (i64, AttentionPattern),
    kv: KvAccess<'_>,
) -> Tensor {
    let text = Tensor::ones([1, 5, model.config().text_dim], (Kind::Float, Device::Cpu));
    let context = model.context(&text, None);
    let s = latents.size();
    let layout = model.layout([s[2], s[3], s[4]], frame_offset, pattern);
    let timestep = Timestep::PerFrame(timestep);
    model.forward(TransformerInput {
        hidden_states: latents,
        timestep,
        context: &context,
        layout: &layout,
        kv,
    })
}

#[test]
fn cached_keys_equal_a_masked_pass() {
    let _guard = tch::no_grad_guard();
    for name in FOLDERS {
        let pipeline = load(&fixture(name));
        let model = &pipeline.transformers()[0];
        let options = (Kind::Float, Device::Cpu);
        let latents = Tensor::randn([1, model.config().in_channels, 6, 4, 6], options);
        let timestep =
            Tensor::from_slice(&[0.0f32, 100.0, 250.0, 500.0, 900.0, 999.0]).view([1, 6]);
        for block in [1, 2, 3, 4] {
            let pattern =
                AttentionPattern::BlockCausal { first_block: block, block_latent_frames: block };
            // Far along the stream, to show that positions matter by their differences alone.
            let whole = flow(model, &latents, &timestep, (0, pattern), KvAccess::None);
            let mut cache = KvCache::new(i64::MAX);
            let pieces: Vec<Tensor> = (0..6)
                .step_by(block as usize)
                .map(|start| {
                    let frames = block.min(6 - start);
                    let part = latents.narrow(2, start, frames);
                    let timestep = timestep.narrow(1, start, frames);
                    let place = (100_000 + start, AttentionPattern::Full);
                    flow(model, &part, &timestep, place, KvAccess::Append(&mut cache))
                })
                .collect();
            assert_close(&whole, &pieces, &format!("{name}, blocks of {block}"));
        }
    }
}

fn settings(width: i64, height: i64) -> Settings {
    Settings { width, height, num_inference_steps: None, noise: NoiseKind::Counter }
}

fn controls(prompt: &str, seed: u64) -> Controls {
    Controls {
        prompt: prompt.into(),
        negative_prompt: "grey".into(),
        guidance_scale: Some(3.0),
        seed,
    }
}

fn roll(pipeline: &Pipeline, size: (i64, i64), prompts: &[&str], seed: u64) -> Vec<Chunk> {
    let request = Request::new(&settings(size.0, size.1), pipeline.info()).unwrap();
    let mut rollout = Rollout::new(pipeline, request).unwrap();
    prompts
        .iter()
        .map(|prompt| rollout.next_chunk(pipeline, &controls(prompt, seed), &|| false).unwrap())
        .collect()
}

#[test]
fn a_stream_depends_on_seed_and_prompts_alone() {
    for folder in rolling_folders() {
        let pipeline = load(folder.path());
        let size = (50, 34);
        let stream = roll(&pipeline, size, &["a fox", "a fox", "a fox", "a fox", "a fox"], 1);
        let mut next = 0;
        for (index, chunk) in stream.iter().enumerate() {
            let info = pipeline.info();
            let expected =
                if index == 0 { info.first_chunk_frames() } else { info.later_chunk_frames() };
            assert_eq!((chunk.first_frame, chunk.frames.len() as i64), (next, expected));
            assert!(
                chunk
                    .frames
                    .iter()
                    .all(|f| (f.width, f.height) == (50, 34) && f.data.len() == 50 * 34 * 3)
            );
            next += expected as u64;
        }
        let again = roll(&pipeline, size, &["a fox"; 5], 1);
        let other_seed = roll(&pipeline, size, &["a fox"; 2], 2);
        let other_prompt = roll(&pipeline, size, &["a fox", "a fox", "the sea"], 1);
        let frames = |stream: &[Chunk], index: usize| stream[index].frames.clone();
        for index in 0..5 {
            assert!(frames(&stream, index) == frames(&again, index), "chunk {index} changed");
        }
        assert!(frames(&stream, 1) != frames(&other_seed, 1));
        assert!(frames(&stream, 1) == frames(&other_prompt, 1));
        assert!(frames(&stream, 2) != frames(&other_prompt, 2));
    }
}

#[test]
fn a_cancelled_chunk_leaves_no_trace() {
    for folder in rolling_folders() {
        let pipeline = load(folder.path());
        let expected = roll(&pipeline, (64, 64), &["a fox"; 3], 1);
        let request = Request::new(&settings(64, 64), pipeline.info()).unwrap();
        let mut rollout = Rollout::new(&pipeline, request).unwrap();
        let mut cancelled = 0;
        for expected in &expected {
            // Cancels ever later, until the chunk gets through.
            let mut patience = 0;
            let chunk = loop {
                let asked = Cell::new(0);
                let cancel = || {
                    asked.set(asked.get() + 1);
                    asked.get() > patience
                };
                match rollout.next_chunk(&pipeline, &controls("a fox", 1), &cancel) {
                    Ok(chunk) => break chunk,
                    Err(Error::Cancelled) => cancelled += 1,
                    Err(other) => panic!("{other}"),
                }
                patience += 2;
            };
            assert!(chunk.frames == expected.frames);
        }
        assert!(cancelled > 6, "cancelled only {cancelled} times");
    }
}

#[test]
fn fewer_steps_than_a_folders_own_end_lower() {
    let native = json!({"num_inference_steps": 4, "few_steps_terminal": 0.3});
    let folder = with_native(FOLDERS[0], native);
    let info = FolderInfo::open(folder.path()).unwrap();
    let last = |steps: u32| {
        let schedule = info.schedule_from_noise(steps).unwrap();
        schedule.sigma(steps as usize - 1)
    };
    assert!((last(3) - 0.3).abs() < 1e-5);
    // Its own number and more are walked as the scheduler says.
    for steps in [4, 5] {
        let plain = info.scheduler.set_timesteps(steps as usize, None).unwrap();
        assert_eq!(info.schedule_from_noise(steps).unwrap(), plain);
    }
}

#[test]
fn a_long_stream_is_held_where_it_began() {
    let native = |latent_lock: f64| {
        json!({
            "num_frames": 13, "num_inference_steps": 2, "causal": true, "block_latent_frames": 1,
            "latent_lock": latent_lock
        })
    };
    // The first eight latent frames say where that is.
    const BEGINNING: usize = 8;
    for name in FOLDERS {
        let (free, held) = (with_native(name, native(0.0)), with_native(name, native(1.0)));
        let (free, held) = (load(free.path()), load(held.path()));
        let prompts = ["a fox"; BEGINNING + 3];
        let (wanders, stays) =
            (roll(&free, (64, 64), &prompts, 1), roll(&held, (64, 64), &prompts, 1));
        for (index, (wanders, stays)) in wanders.iter().zip(&stays).enumerate() {
            let same = wanders.frames == stays.frames;
            assert_eq!(same, index < BEGINNING, "{name}, chunk {index}");
        }
        // What a cancelled chunk has measured is forgotten, before the stream is held and after.
        let request = Request::new(&settings(64, 64), held.info()).unwrap();
        let mut rollout = Rollout::new(&held, request).unwrap();
        for expected in &stays {
            for patience in [2, 8] {
                let asked = Cell::new(0);
                let cancel = || asked.replace(asked.get() + 1) >= patience;
                let cancelled = rollout.next_chunk(&held, &controls("a fox", 1), &cancel);
                assert!(matches!(cancelled, Err(Error::Cancelled)));
            }
            let chunk = rollout.next_chunk(&held, &controls("a fox", 1), &|| false).unwrap();
            assert!(chunk.frames == expected.frames);
        }
    }
}

#[test]
fn a_beginning_has_guidance_of_its_own() {
    let native = |causal: bool, initial: Option<f64>| {
        json!({
            "num_frames": 13, "num_inference_steps": 2, "causal": causal, "block_latent_frames": 1,
            "guidance_scale": 1.0, "initial_guidance_scale": initial
        })
    };
    for (name, causal) in FOLDERS.iter().flat_map(|name| [(name, false), (name, true)]) {
        let [own, none] =
            [Some(3.0), None].map(|initial| with_native(name, native(causal, initial)));
        let [own, none] = [own, none].map(|folder| load(folder.path()));
        let stream = |pipeline: &Pipeline, scales: [Option<f64>; 4]| -> Vec<Vec<RgbFrame>> {
            let request = Request::new(&settings(64, 64), pipeline.info()).unwrap();
            let mut rollout = Rollout::new(pipeline, request).unwrap();
            scales
                .map(|guidance_scale| {
                    let controls = Controls { guidance_scale, ..controls("a fox", 1) };
                    rollout.next_chunk(pipeline, &controls, &|| false).unwrap().frames
                })
                .to_vec()
        };
        let begun = stream(&own, [None; 4]);
        assert!(begun == stream(&none, [Some(3.0), None, None, None]), "{name}, {causal}");
        assert!(begun[0] != stream(&none, [None; 4])[0], "{name}, {causal}");
        // Guidance that is asked for is the beginning's too, and may come and go.
        assert!(stream(&own, [Some(1.0); 4]) == stream(&none, [None; 4]), "{name}, {causal}");
        let returning = stream(&own, [Some(3.0), None, Some(3.0), None]);
        assert!(returning[..2] == begun[..2] && returning[2] != begun[2], "{name}, {causal}");
        let still = |pipeline: &Pipeline, guidance_scale: Option<f64>| {
            let request = Request::new(&settings(64, 64), pipeline.info()).unwrap();
            let mut rollout = Rollout::new(pipeline, request).unwrap();
            let controls = Controls { guidance_scale, ..controls("a fox", 1) };
            rollout.still(pipeline, &controls, &|| false).unwrap().frames
        };
        assert!(still(&own, None) == still(&none, Some(3.0)), "{name}, {causal}");
    }
}

#[test]
fn stills_differ_from_each_other() {
    let folder = &rolling_folders()[0];
    let pipeline = load(folder.path());
    let request = Request::new(&settings(48, 32), pipeline.info()).unwrap();
    let mut rollout = Rollout::new(&pipeline, request).unwrap();
    let mut still = || rollout.still(&pipeline, &controls("a fox", 1), &|| false).unwrap();
    let (first, second) = (still(), still());
    assert_eq!((first.frames.len(), first.first_frame, second.first_frame), (1, 0, 1));
    assert!(first.frames != second.frames);
}

#[test]
fn loading_reports_progress_and_stops() {
    let info = FolderInfo::open(&fixture("t2v_public")).unwrap();
    let mut shares = Vec::new();
    let mut progress = |_: &str, share: f64| {
        shares.push(share);
        true
    };
    Pipeline::load(&info, Device::Cpu, Precision::F32, &mut progress).unwrap();
    assert!(shares.windows(2).all(|pair| pair[0] <= pair[1]));
    assert!((shares[shares.len() - 1] - 1.0).abs() < 1e-9, "{:?}", shares.last());
    let stopped = Pipeline::load(&info, Device::Cpu, Precision::F32, &mut |_, share| share < 0.5);
    assert!(matches!(stopped, Err(Error::Cancelled)));
}

#[test]
fn impossible_sizes_and_steps_are_refused() {
    let info = FolderInfo::open(&fixture("ti2v_public")).unwrap();
    for (wrong, named) in [
        (settings(8, 64), "width"),
        (settings(64, 1 << 20), "height"),
        (Settings { num_inference_steps: Some(0), ..settings(64, 64) }, "steps"),
    ] {
        let error = Request::new(&wrong, &info).unwrap_err().to_string();
        assert!(error.starts_with(named), "{error}");
    }
}

#[test]
fn memory_is_estimated_before_it_is_spent() {
    let info = FolderInfo::open(&fixture("t2v_public")).unwrap();
    info.check_memory(64, 64, Device::Cpu, Precision::F32).unwrap();
    let small = info.estimate_memory(64, 64, Device::Cpu, Precision::F32).unwrap();
    let large = info.estimate_memory(1280, 704, Device::Cpu, Precision::F32).unwrap();
    assert!(large.activations > 50 * small.activations && large.weights == small.weights);
    let error = info.check_memory(32_768, 32_768, Device::Cpu, Precision::F32).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }) && error.to_string().contains("width"));
}
