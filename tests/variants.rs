// SPDX-License-Identifier: MPL-2.0
//! Folders with two experts, and models in half precision.

mod common;

use std::path::Path;

use common::{deviation, fixture, linked};
use gstdit::models::transformer_wan::{AttentionPattern, Timestep, TransformerInput};
use gstdit::nn::attention::KvAccess;
use gstdit::pipeline::{Controls, FolderInfo, NoiseKind, Pipeline, Request, Rollout, Settings};
use gstdit::torch::Precision;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

const FOLDERS: [&str; 2] = ["t2v_public", "ti2v_public"];
const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

fn load(folder: &Path, precision: Precision) -> Pipeline {
    let info = FolderInfo::open(folder).unwrap();
    Pipeline::load(&info, Device::Cpu, precision, &mut |_, _| true).unwrap()
}

/// The bytes of a first and a second chunk.
fn frames(pipeline: &Pipeline) -> Vec<Vec<u8>> {
    let settings =
        Settings { width: 64, height: 32, num_inference_steps: Some(4), noise: NoiseKind::Counter };
    let request = Request::new(&settings, pipeline.info()).unwrap();
    let controls = Controls {
        prompt: "a fox in the snow".into(),
        negative_prompt: "grey".into(),
        guidance_scale: Some(3.0),
        seed: 1,
    };
    let mut rollout = Rollout::new(pipeline, request).unwrap();
    (0..2)
        .flat_map(|_| rollout.next_chunk(pipeline, &controls, &|| false).unwrap().frames)
        .map(|frame| frame.data)
        .collect()
}

/// A fixture without its transformer and with windows of nine frames.
fn folder_with(name: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    linked(name, &["scheduler", "text_encoder", "tokenizer", "vae"], |index| {
        index["_dit"] = json!({"num_frames": 9, "context_latent_frames": 1});
        change(index);
    })
}

/// Writes the fixture's transformer, its output scaled, as a component of a folder.
fn write_transformer(folder: &Path, name: &str, component: &str, scale: f64) {
    let source = fixture(name).join("transformer");
    let target = folder.join(component);
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("config.json"), std::fs::read(source.join("config.json")).unwrap())
        .unwrap();
    let mut tensors = Tensor::read_safetensors(source.join(WEIGHTS)).unwrap();
    for (key, tensor) in &mut tensors {
        if key.starts_with("proj_out.") {
            *tensor = &*tensor * scale;
        }
    }
    let tensors = tensors.iter().map(|(key, tensor)| (key.clone(), tensor));
    gstdit::weights::safetensors::write(&target.join(WEIGHTS), tensors).unwrap();
}

#[test]
fn experts_take_over_at_the_boundary() {
    for name in FOLDERS {
        let two = |boundary: f64| {
            let folder = folder_with(name, |index| {
                index["transformer_2"] = index["transformer"].clone();
                index["boundary_ratio"] = json!(boundary);
            });
            write_transformer(folder.path(), name, "transformer", 1.0);
            write_transformer(folder.path(), name, "transformer_2", 0.5);
            frames(&load(folder.path(), Precision::F32))
        };
        let one = |scale: f64| {
            let folder = folder_with(name, |_| ());
            write_transformer(folder.path(), name, "transformer", scale);
            frames(&load(folder.path(), Precision::F32))
        };
        let (first, second) = (one(1.0), one(0.5));
        assert!(first != second, "{name}: the experts differ too little to tell");
        assert!(two(0.0) == first, "{name}: only the first");
        assert!(two(1.1) == second, "{name}: only the second");
        let both = two(0.7);
        assert!(both != first && both != second, "{name}: one after the other");
    }
}

/// One evaluation of the transformer on fixed inputs, in f32.
fn flow(pipeline: &Pipeline) -> Tensor {
    let _guard = tch::no_grad_guard();
    let model = &pipeline.transformers()[0];
    let wave = |shape: &[i64]| {
        let count = shape.iter().product::<i64>();
        (Tensor::arange(count, (Kind::Float, Device::Cpu)) * 0.37).sin().view(shape)
    };
    let latents = wave(&[1, model.config().in_channels, 3, 4, 6]);
    let context = model.context(&wave(&[1, 7, model.config().text_dim]), None);
    let layout = model.layout([3, 4, 6], 0, AttentionPattern::Full);
    let timestep = Tensor::from_slice(&[700.0f32]);
    let input = TransformerInput {
        hidden_states: &latents,
        timestep: Timestep::PerClip(&timestep),
        context: &context,
        layout: &layout,
        kv: KvAccess::None,
    };
    model.forward(input).to_kind(Kind::Float)
}

#[test]
fn half_precision_stays_near_single() {
    for name in FOLDERS {
        let single = load(&fixture(name), Precision::F32);
        let (wanted_flow, wanted_frames) = (flow(&single), frames(&single));
        // bf16 keeps 8 bits, f16 11; a dozen layers lose a few of them.
        for (precision, kind, bar, bytes_bar) in [
            (Precision::Bf16, Kind::BFloat16, 2.5e-2, 2.0),
            (Precision::F16, Kind::Half, 3e-3, 0.3),
        ] {
            let half = load(&fixture(name), precision);
            assert_eq!(half.transformers()[0].kind(), kind);
            let off = deviation(&wanted_flow, &flow(&half)).unwrap();
            let frames = frames(&half);
            assert_eq!(frames.len(), wanted_frames.len());
            let pairs = frames.iter().flatten().zip(wanted_frames.iter().flatten());
            let difference: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            let bytes = wanted_frames.iter().map(Vec::len).sum::<usize>();
            let mean = difference as f64 / bytes as f64;
            println!("{name} {precision:?}: flow off by {off:.1e}, bytes by {mean:.2} on average");
            assert!(off < bar, "{name} {precision:?}: flow off by {off:.1e}");
            assert!(mean < bytes_bar, "{name} {precision:?}: bytes off by {mean:.2}");
        }
    }
}
