// SPDX-License-Identifier: MPL-2.0
//! Training of the parts of the default model: what is not taught stays as it is, to the byte, and what is written opens.

#![cfg(feature = "training")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gstdit::pipeline::{FolderInfo, Pipeline};
use gstdit::torch::Precision;
use gstdit::training::{dit, vae};
use gstdit::weights::Checkpoint;
use tch::{Device, Tensor};

fn default_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default")
}

fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    let weights = Checkpoint::open(folder, "diffusion_pytorch_model").unwrap();
    weights.names().map(|name| (name.to_owned(), weights.raw(name).unwrap())).collect()
}

fn decoder_of(folder: PathBuf, out: &Path) -> vae::VaeOptions {
    vae::VaeOptions {
        out: out.to_owned(),
        from: None,
        decoder_of: Some(folder),
        encoder_of: None,
        favoured: vec!["pixel art", "star"],
        steps: 2,
        seconds: None,
        image_steps: 0,
        learning_rate: 1e-2,
        decay_steps: 1,
        kl_weight: 1e-4,
        latent_noise: 0.0,
        workers: 1,
        seed: 5,
        device: Device::Cpu,
        save_every: 100,
        batch: 1,
    }
}

#[test]
fn a_decoder_is_taught_alone_and_resumes() {
    let out = tempfile::tempdir().unwrap();
    let mut options = decoder_of(default_model(), out.path());
    vae::train(&options).unwrap();
    let (before, first) = (tensors(&default_model().join("vae")), tensors(&out.path().join("vae")));
    assert!(before.keys().eq(first.keys()));
    for (name, weight) in &before {
        let taught = name.starts_with("decoder.") || name.starts_with("post_quant_conv.");
        assert!(taught || *weight == first[name], "{name}");
    }
    let config = |folder: &Path| std::fs::read_to_string(folder.join("vae/config.json")).unwrap();
    let json = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
    assert_eq!(json(config(out.path())), json(config(&default_model())));
    options.steps = 4;
    vae::train(&options).unwrap();
    let second = tensors(&out.path().join("vae"));
    let moved = |a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>| {
        let weight = "decoder.conv_out.weight";
        (&a[weight] - &b[weight]).abs().max().double_value(&[])
    };
    assert!(moved(&before, &first) > 0.0 && moved(&first, &second) > 0.0);
    vae::load(&out.path().join("vae"), Device::Cpu).unwrap();
}

#[test]
fn an_encoder_is_taught_alone() {
    let out = tempfile::tempdir().unwrap();
    let options = vae::VaeOptions {
        decoder_of: None,
        encoder_of: Some(default_model()),
        ..decoder_of(default_model(), out.path())
    };
    vae::train(&options).unwrap();
    let (before, after) = (tensors(&default_model().join("vae")), tensors(&out.path().join("vae")));
    assert!(before.keys().eq(after.keys()));
    for (name, weight) in &before {
        let taught = name.starts_with("encoder.") || name.starts_with("quant_conv.");
        assert!(taught || *weight == after[name], "{name}");
    }
    assert!(before["encoder.conv_in.weight"] != after["encoder.conv_in.weight"]);
    vae::load(&out.path().join("vae"), Device::Cpu).unwrap();
}

#[test]
fn an_autoencoder_is_taught_on_with_noise_on_its_latents() {
    let out = tempfile::tempdir().unwrap();
    let from = default_model().join("vae");
    let options = vae::VaeOptions {
        decoder_of: None,
        from: Some(from.clone()),
        latent_noise: 0.5,
        ..decoder_of(default_model(), out.path())
    };
    vae::train(&options).unwrap();
    let (before, after) = (tensors(&default_model().join("vae")), tensors(&out.path().join("vae")));
    let weight = "encoder.conv_in.weight";
    assert!(before.keys().eq(after.keys()));
    assert!(
        before[weight] != after[weight] && after[weight].isfinite().all().int64_value(&[]) == 1
    );
    vae::load(&out.path().join("vae"), Device::Cpu).unwrap();
}

#[test]
fn a_transformer_that_predicts_the_flow_teaches_no_decoder() {
    let out = tempfile::tempdir().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ti2v_public");
    let error = vae::train(&decoder_of(folder, out.path())).unwrap_err();
    assert!(
        format!("{error:#}").contains("ti2v_public: found a transformer that predicts the flow"),
        "{error:#}"
    );
}

fn taught_on(out: &Path) -> dit::DitOptions {
    dit::DitOptions {
        vae: default_model().join("vae"),
        out: out.to_owned(),
        from: Some(default_model()),
        hold: None,
        collage_share: 0.0,
        restyle_lora: None,
        fresh_head: true,
        num_attention_heads: 6,
        num_layers: 6,
        steps: 1,
        seconds: None,
        image_steps: 0,
        simple_steps: 1,
        clip_share: 0.5,
        favoured: vec!["star"],
        guidance_scale: 2.0,
        learning_rate: 1e-3,
        decay_steps: 0,
        batch_tokens: 140,
        half_attention: true,
        workers: 1,
        seed: 3,
        device: Device::Cpu,
        save_every: 100,
        sheets: false,
    }
}

#[test]
fn a_transformer_is_held_to_another() {
    let out = tempfile::tempdir().unwrap();
    let options = dit::DitOptions {
        hold: Some(default_model()),
        fresh_head: false,
        clip_share: 1.0,
        steps: 3,
        batch_tokens: 560,
        half_attention: false,
        ..taught_on(out.path())
    };
    dit::train(&options).unwrap();
    let initial = |folder: &Path| FolderInfo::open(folder).unwrap().native.initial_guidance_scale;
    assert_eq!(initial(&out.path().join("model")), Some(1.0));
    let flow = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ti2v_public");
    let error = dit::train(&dit::DitOptions { hold: Some(flow), ..options }).unwrap_err();
    assert!(
        format!("{error:#}").contains("ti2v_public: found a transformer that predicts the flow"),
        "{error:#}"
    );
}

#[test]
fn what_restyles_is_taught_beside_weights_that_stay() {
    let out = tempfile::tempdir().unwrap();
    let options = dit::DitOptions {
        hold: Some(default_model()),
        fresh_head: false,
        collage_share: 0.7,
        restyle_lora: Some(2),
        steps: 3,
        half_attention: false,
        ..taught_on(out.path())
    };
    dit::train(&options).unwrap();
    let folder = out.path().join("model");
    let bytes = |folder: &Path| {
        std::fs::read(folder.join("transformer/diffusion_pytorch_model.safetensors")).unwrap()
    };
    assert!(bytes(&default_model()) == bytes(&folder));
    let info = FolderInfo::open(&folder).unwrap().for_restyling().unwrap();
    assert!(info.loras[0].path.starts_with(&folder), "{:?}", info.loras);
    let mut nothing = |_: &str, _: f64| true;
    Pipeline::load(&info, Device::Cpu, Precision::F32, &mut nothing).unwrap();
    let wrong = |options: &dit::DitOptions| format!("{:#}", dit::train(options).unwrap_err());
    let none = dit::DitOptions { from: None, collage_share: 0.0, ..options.clone() };
    assert!(wrong(&none).contains("--restyle-lora: found no pipeline folder"));
    let none = dit::DitOptions { restyle_lora: Some(0), ..options.clone() };
    assert!(wrong(&none).contains("--restyle-lora: found 0"));
    let taught = dit::DitOptions { fresh_head: true, ..options };
    assert!(wrong(&taught).contains("--collage-share: found 0.7"));
}

#[test]
fn a_transformer_is_taught_on_from_a_folder() {
    let out = tempfile::tempdir().unwrap();
    let mut options = taught_on(out.path());
    dit::train(&options).unwrap();
    FolderInfo::open(&out.path().join("model")).unwrap();
    let weight = "blocks.0.attn1.to_q.weight";
    let [before, first] = [default_model(), out.path().join("model")]
        .map(|folder| tensors(&folder.join("transformer"))[weight].to_kind(tch::Kind::Float));
    let off = (&before - first).abs().max().double_value(&[]);
    // The first of 300 steps over which the rate goes up.
    assert!(off < 1e-3, "{off}");
    options.from = Some(out.path().join("nowhere"));
    let error = {
        let other = tempfile::tempdir().unwrap();
        options.out = other.path().to_owned();
        dit::train(&options).unwrap_err()
    };
    assert!(format!("{error:#}").contains("nowhere"), "{error:#}");
}
