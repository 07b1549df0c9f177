// SPDX-License-Identifier: MPL-2.0
//! Writes what was trained as the diffusers-style folder that inference opens.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::batch::BLOCK_LATENT_FRAMES;
use super::dit::{DitOptions, MAX_SEQUENCE_LENGTH};
use super::trainer::{ATTRIBUTE_HEAD, Blueprint, Sources};
use crate::weights::safetensors;

/// The file of low-rank changes that a folder restyles with.
const RESTYLE_LORA: &str = "restyle_lora.safetensors";
/// How strongly it is merged: more costs the colours of what the model knows (models/TRAINING.md).
const RESTYLE_LORA_SCALE: f64 = 0.6;

/// Writes `model/` below the output folder: configurations, weights in f16, tokenizer, autoencoder.
pub(super) fn write(options: &DitOptions, blueprint: &Blueprint, sources: &Sources) -> Result<()> {
    let folder = options.out.join("model");
    let part = |name: &str| -> Result<_> {
        let path = folder.join(name);
        std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    };
    json_file(
        &part("")?.join("model_index.json"),
        model_index(blueprint.guidance_scale, options.hold.is_some()),
    )?;
    json_file(&part("scheduler")?.join("scheduler_config.json"), scheduler())?;
    let transformer = part("transformer")?;
    let mut config = serde_json::to_value(&blueprint.transformer)?;
    config["_class_name"] = "WanTransformer3DModel".into();
    json_file(&transformer.join("config.json"), config)?;
    let text_encoder = part("text_encoder")?;
    let mut config = serde_json::to_value(&blueprint.text_encoder)?;
    config["architectures"] = json!(["UMT5EncoderModel"]);
    config["model_type"] = "umt5".into();
    json_file(&text_encoder.join("config.json"), config)?;
    trained_weights(&folder, sources)?;
    copy_folder(&options.out.join("tokenizer"), &part("tokenizer")?)?;
    copy_folder(&options.vae, &part("vae")?)
}

/// Writes `model/` below the output folder: the folder that was started from, with what was trained to restyle.
pub(super) fn write_restyling(options: &DitOptions, from: &Path, sources: &Sources) -> Result<()> {
    let folder = options.out.join("model");
    copy_folder(from, &folder)?;
    weights(&folder.join(RESTYLE_LORA), sources.named())?;
    let path = folder.join("model_index.json");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut index: Value =
        serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    index["_dit"]["restyle_lora"] = RESTYLE_LORA.into();
    index["_dit"]["restyle_lora_scale"] = RESTYLE_LORA_SCALE.into();
    json_file(&path, index)
}

/// `_dit` says what the model is at home with; diffusers ignores keys that begin with an underscore.
fn model_index(learnt_guidance_scale: f64, initial_is_learnt: bool) -> Value {
    // With guidance learnt, five steps are as good as eight, and a little more helps what nothing precedes, unless that is
    // learnt as well; fewer steps want a lower last level (models/TRAINING.md).
    let (num_inference_steps, guidance_scale, initial_guidance_scale) =
        match learnt_guidance_scale > 1.0 {
            true => (5, 1.0, if initial_is_learnt { 1.0 } else { 1.5 }),
            false => (12, 2.0, 2.0),
        };
    json!({
        "_class_name": "WanPipeline",
        "boundary_ratio": null,
        "expand_timesteps": true,
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [null, null],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "_dit": {
            "width": 224,
            "height": 128,
            "framerate": [16, 1],
            "num_frames": 17,
            "num_inference_steps": num_inference_steps,
            "few_steps_terminal": 0.4,
            "restyle_sigmas": [1.0, 0.54, 0.50, 0.46, 0.40],
            "restyle_first_strength": 0.8,
            "guidance_scale": guidance_scale,
            "initial_guidance_scale": initial_guidance_scale,
            "learnt_guidance_scale": learnt_guidance_scale,
            "latent_lock": 1.0,
            "max_sequence_length": MAX_SEQUENCE_LENGTH,
            "max_pixels": 224 * 128,
            "context_latent_frames": 2,
            "causal": true,
            "block_latent_frames": BLOCK_LATENT_FRAMES,
        },
    })
}

/// Noise that comes in with every step hides what earlier ones got wrong (models/TRAINING.md).
fn scheduler() -> Value {
    json!({
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "sde-dpmsolver++",
        "num_train_timesteps": 1000,
        "prediction_type": "sample",
        "use_flow_sigmas": true,
        "flow_shift": 4.0,
        "solver_order": 2,
        "solver_type": "midpoint",
        "final_sigmas_type": "zero",
    })
}

fn json_file(path: &Path, value: Value) -> Result<()> {
    std::fs::write(path, serde_json::to_string_pretty(&value)? + "\n")
        .with_context(|| path.display().to_string())
}

/// Writes the weights of the parts that are trained into a pipeline folder, the lesson's head aside.
pub(super) fn trained_weights(folder: &Path, sources: &Sources) -> Result<()> {
    let parts = sources.trained().filter(|(part, _)| *part != ATTRIBUTE_HEAD);
    for (part, parameters) in parts {
        let stem = if part == "transformer" { "diffusion_pytorch_model" } else { "model" };
        weights(&folder.join(part).join(format!("{stem}.safetensors")), parameters.named())?;
    }
    Ok(())
}

fn weights(path: &Path, named: Vec<(String, Tensor)>) -> Result<()> {
    let named: Vec<(String, Tensor)> =
        named.into_iter().map(|(name, t)| (name, t.detach().to_kind(Kind::Half))).collect();
    Ok(safetensors::write(path, named.iter().map(|(name, t)| (name.clone(), t)))?)
}

/// Copies a folder with all that is in it; one that is that folder already stays as it is.
pub(super) fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    let whole = |path: &Path| path.canonicalize().with_context(|| path.display().to_string());
    if whole(from)? == whole(to)? {
        return Ok(());
    }
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()))?;
            continue;
        }
        std::fs::copy(entry.path(), to.join(entry.file_name()))
            .with_context(|| entry.path().display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_not_copied_over_itself() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights");
        std::fs::write(&file, "weights").unwrap();
        copy_folder(folder.path(), &folder.path().join(".")).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"weights");
        let copy = folder.path().with_extension("copy");
        copy_folder(folder.path(), &copy).unwrap();
        assert_eq!(std::fs::read(copy.join("weights")).unwrap(), b"weights");
        std::fs::remove_dir_all(copy).unwrap();
    }
}
