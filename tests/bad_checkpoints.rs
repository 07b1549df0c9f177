// SPDX-License-Identifier: MPL-2.0
//! Damaged and mismatched folders: one clear error each, naming the file or tensor, without a panic.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::fixture;
use gstdit::pipeline::{FolderInfo, Pipeline};
use gstdit::torch::Precision;
use serde_json::{Value, json};
use tch::Device;

const WEIGHTS: &str = "transformer/diffusion_pytorch_model.safetensors";
const TENSOR: &str = "blocks.1.ffn.net.0.proj.weight";

/// A copy of a fixture that may be damaged.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy(&fixture("t2v_public"), folder.path());
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Changes a JSON file.
    fn edit_json(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap();
        change(&mut value);
        fs::write(self.path(name), value.to_string()).unwrap();
    }

    /// Changes the header and the bytes after it of the transformer's weights.
    fn edit_weights(&self, change: impl FnOnce(&mut Value, &mut Vec<u8>)) {
        let file = fs::read(self.path(WEIGHTS)).unwrap();
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let mut header = serde_json::from_slice(&file[8..8 + length]).unwrap();
        let mut data = file[8 + length..].to_vec();
        change(&mut header, &mut data);
        let header = header.to_string();
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
        fs::write(self.path(WEIGHTS), bytes).unwrap();
    }

    /// The one error that opening and loading gives; it must contain all of `parts`.
    fn fails_with(&self, parts: &[&str]) {
        let outcome = FolderInfo::open(self.0.path()).and_then(|info| {
            Pipeline::load(&info, Device::Cpu, Precision::F32, &mut |_, _| true).map(|_| ())
        });
        let text = outcome.expect_err("the folder is damaged").to_string();
        println!("{text}");
        for part in parts {
            assert!(text.contains(part), "no \"{part}\" in: {text}");
        }
        assert!(text.len() < 1000 && !text.contains("frame #"), "{text}");
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else if !entry.file_name().to_string_lossy().starts_with("golden") {
            // The bytes alone: fixtures may be read-only.
            fs::write(target, fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

#[test]
fn no_folder() {
    let error = FolderInfo::open(Path::new("/no/such/folder")).unwrap_err().to_string();
    assert!(error.contains("/no/such/folder: no such folder"), "{error}");
}

#[test]
fn no_model_index() {
    let folder = Folder::new();
    fs::remove_file(folder.path("model_index.json")).unwrap();
    folder.fails_with(&["no model_index.json"]);
}

#[test]
fn model_index_that_is_not_json() {
    let folder = Folder::new();
    fs::write(folder.path("model_index.json"), "{ nonsense").unwrap();
    folder.fails_with(&["model_index.json", "line 1"]);
}

#[test]
fn another_kind_of_pipeline() {
    let folder = Folder::new();
    folder
        .edit_json("model_index.json", |index| index["transformer"][1] = json!("FluxTransformer"));
    folder.fails_with(&["model_index.json", "FluxTransformer", "WanTransformer3DModel"]);
}

#[test]
fn native_values_out_of_range() {
    let folder = Folder::new();
    folder.edit_json("model_index.json", |index| index["_dit"] = json!({"num_frames": 10}));
    folder.fails_with(&["_dit.num_frames", "10", "4n+1"]);
    folder.edit_json("model_index.json", |index| index["_dit"] = json!({"width": "wide"}));
    folder.fails_with(&["_dit", "wide"]);
    for level in [0.0, 1.0, -0.5] {
        let native = json!({"few_steps_terminal": level});
        folder.edit_json("model_index.json", |index| index["_dit"] = native.clone());
        folder.fails_with(&["_dit.few_steps_terminal", &level.to_string(), "above 0"]);
    }
    for levels in [json!([]), json!([0.9, 0.9]), json!([1.5, 0.5]), json!([0.5, 0.0])] {
        let native = json!({ "restyle_sigmas": levels });
        folder.edit_json("model_index.json", |index| index["_dit"] = native.clone());
        folder.fails_with(&["_dit.restyle_sigmas", "strictly falling", "at most 1"]);
    }
    folder.edit_json("model_index.json", |index| {
        index["_dit"] = json!({"restyle_lora_scale": 11.0});
    });
    folder.fails_with(&["_dit.restyle_lora_scale", "11", "-10 to 10"]);
    for strength in [-0.1, 1.1] {
        let native = json!({ "restyle_first_strength": strength });
        folder.edit_json("model_index.json", |index| index["_dit"] = native.clone());
        folder.fails_with(&["_dit.restyle_first_strength", &strength.to_string(), "0 to 1"]);
    }
}

#[test]
fn a_config_with_impossible_values() {
    let folder = Folder::new();
    let config = "transformer/config.json";
    folder.edit_json(config, |config| config["attention_head_dim"] = json!(21));
    folder.fails_with(&[config, "attention_head_dim", "21", "even"]);
    folder.edit_json(config, |config| config["attention_head_dim"] = json!(i64::MAX - 1));
    folder.fails_with(&[config, "attention_head_dim"]);
    folder.edit_json(config, |config| {
        config["attention_head_dim"] = json!(20);
        config["num_attention_heads"] = json!(-2);
    });
    folder.fails_with(&[config, "num_attention_heads", "-2"]);
}

#[test]
fn components_that_do_not_fit_each_other() {
    let folder = Folder::new();
    folder.edit_json("transformer/config.json", |config| config["text_dim"] = json!(48));
    folder.fails_with(&["text_dim", "48", "d_model, 32"]);
}

#[test]
fn a_second_expert_is_named_by_its_own_file() {
    let folder = Folder::new();
    fs::create_dir(folder.path("transformer_2")).unwrap();
    copy(&folder.path("transformer"), &folder.path("transformer_2"));
    folder.edit_json("model_index.json", |index| {
        index["transformer_2"] = index["transformer"].clone();
    });
    let config = "transformer_2/config.json";
    folder.edit_json(config, |config| config["num_layers"] = json!(0));
    folder.fails_with(&[config, "num_layers", "0"]);
    folder.edit_json(config, |config| {
        config["num_layers"] = json!(2);
        config["patch_size"] = json!([1, 1, 1]);
    });
    folder.fails_with(&[config, "patch_size", "[1, 1, 1]", "[1, 2, 2]"]);
    fs::remove_file(folder.path(config)).unwrap();
    folder.fails_with(&[config]);
}

#[test]
fn an_autoencoder_of_impossible_size() {
    let folder = Folder::new();
    let config = "vae/config.json";
    folder.edit_json(config, |config| config["base_dim"] = json!(i64::MAX));
    folder.fails_with(&[config, "base_dim", "2^16"]);
    folder.edit_json(config, |config| config["dim_mult"] = json!(vec![1; 70]));
    folder.fails_with(&[config, "dim_mult", "eight"]);
}

#[test]
fn missing_weights() {
    let folder = Folder::new();
    fs::remove_file(folder.path(WEIGHTS)).unwrap();
    folder.fails_with(&["transformer", "no weights"]);
}

#[test]
fn truncated_weights() {
    let folder = Folder::new();
    let bytes = fs::read(folder.path(WEIGHTS)).unwrap();
    for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(folder.path(WEIGHTS), &bytes[..length]).unwrap();
        folder.fails_with(&[WEIGHTS]);
    }
}

#[test]
fn a_huge_header() {
    let folder = Folder::new();
    let mut bytes = fs::read(folder.path(WEIGHTS)).unwrap();
    for length in [1u64 << 40, u64::MAX] {
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(folder.path(WEIGHTS), &bytes).unwrap();
        folder.fails_with(&[WEIGHTS, "not a valid safetensors file"]);
    }
}

#[test]
fn overlapping_tensors() {
    let folder = Folder::new();
    folder.edit_weights(|header, _| {
        header[TENSOR]["data_offsets"] =
            header["blocks.0.ffn.net.0.proj.weight"]["data_offsets"].clone();
    });
    folder.fails_with(&[WEIGHTS, "not a valid safetensors file"]);
}

#[test]
fn a_shape_that_overflows() {
    let folder = Folder::new();
    folder.edit_weights(|header, _| header[TENSOR]["shape"] = json!([1u64 << 40, 1u64 << 40]));
    folder.fails_with(&[WEIGHTS, "not a valid safetensors file"]);
}

#[test]
fn integers_for_weights() {
    let folder = Folder::new();
    folder.edit_weights(|header, _| header[TENSOR]["dtype"] = json!("I32"));
    folder.fails_with(&[WEIGHTS, TENSOR, "floating-point"]);
}

#[test]
fn values_that_are_not_numbers() {
    let folder = Folder::new();
    folder.edit_weights(|header, data| {
        let start = header[TENSOR]["data_offsets"][0].as_u64().unwrap() as usize;
        data[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    folder.fails_with(&[WEIGHTS, TENSOR, "NaN"]);
}

#[test]
fn a_missing_tensor() {
    let folder = Folder::new();
    folder.edit_weights(|header, _| {
        let header = header.as_object_mut().unwrap();
        let tensor = header.remove(TENSOR).unwrap();
        header.insert("blocks.1.ffn.net.0.other.weight".into(), tensor);
    });
    folder.fails_with(&["transformer", TENSOR, "missing"]);
}

#[test]
fn a_tensor_of_another_shape() {
    let folder = Folder::new();
    folder.edit_weights(|header, _| header[TENSOR]["shape"] = json!([40, 56]));
    folder.fails_with(&["transformer", TENSOR, "[40, 56]", "[56, 40]"]);
}

#[test]
fn a_tensor_that_has_no_place() {
    let folder = Folder::new();
    folder.edit_json("transformer/config.json", |config| config["num_layers"] = json!(1));
    folder.fails_with(&["transformer", "no place", "blocks.1."]);
}

#[test]
fn a_damaged_shard_index() {
    let folder = Folder::new();
    let index = folder.path("transformer/diffusion_pytorch_model.safetensors.index.json");
    let cases = [
        (json!({}), "weight_map"),
        (json!({"weight_map": {"a": "../secret.safetensors"}}), "plain file name"),
        (json!({"weight_map": {"a": "gone.safetensors"}}), "gone.safetensors"),
        (json!({"weight_map": {"a": "diffusion_pytorch_model.safetensors"}}), "missing"),
    ];
    for (content, part) in cases {
        fs::write(&index, content.to_string()).unwrap();
        folder.fails_with(&["transformer", part]);
    }
}

#[test]
fn a_damaged_tokenizer() {
    let folder = Folder::new();
    let file = "tokenizer/tokenizer.json";
    for garbage in ["", "{}", "[1, 2", "\u{0}\u{1}"] {
        fs::write(folder.path(file), garbage).unwrap();
        folder.fails_with(&[file]);
    }
    fs::remove_file(folder.path(file)).unwrap();
    folder.fails_with(&[file]);
}

#[test]
fn more_tokens_than_embeddings() {
    let folder = Folder::new();
    folder.edit_json("text_encoder/config.json", |config| config["vocab_size"] = json!(100));
    folder.fails_with(&["tokenizer", "vocab_size, 100"]);
}

#[test]
fn an_unknown_scheduler() {
    let folder = Folder::new();
    folder.edit_json("scheduler/scheduler_config.json", |config| {
        config["_class_name"] = json!("DDIMScheduler");
    });
    folder.fails_with(&["scheduler_config.json", "DDIMScheduler"]);
}
