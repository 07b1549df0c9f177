// SPDX-License-Identifier: MPL-2.0
//! What the parity tests share: reading a fixture folder's goldens, and comparing as `tests/fixtures/compare.py` does.
//!
//! A golden folder holds `golden.json` (cases with kind, parameters, and the keys of inputs and outputs) and
//! `golden.safetensors` (the tensors).

// Each test file compiles this module anew and uses a part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gstdit::pipeline::{FolderInfo, Pipeline};
use gstdit::torch::Precision;
use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// Tiny checkpoints of both families.
pub const FOLDERS: [&str; 2] = ["t2v_public", "ti2v_public"];

/// The folder `tests/fixtures/NAME`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A folder with parts of a fixture (linked, not copied) and a changed `model_index.json`.
pub fn linked(name: &str, parts: &[&str], change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for part in parts {
        std::os::unix::fs::symlink(fixture(name).join(part), folder.path().join(part)).unwrap();
    }
    let text = std::fs::read_to_string(fixture(name).join("model_index.json")).unwrap();
    let mut index = serde_json::from_str(&text).unwrap();
    change(&mut index);
    std::fs::write(folder.path().join("model_index.json"), index.to_string()).unwrap();
    folder
}

/// Loads a folder to the CPU.
pub fn load(folder: &Path) -> Pipeline {
    let info = FolderInfo::open(folder).unwrap();
    Pipeline::load(&info, Device::Cpu, Precision::F32, &mut |_, _| true).unwrap()
}

/// The components of a fixture under a `model_index.json` with native values of its own.
pub fn with_native(name: &str, native: Value) -> tempfile::TempDir {
    let parts = ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"];
    linked(name, &parts, |index| index["_dit"] = native)
}

/// As [`with_native`], with a solver that brings noise in at every step.
pub fn stochastic(name: &str, native: Value) -> tempfile::TempDir {
    let parts = ["text_encoder", "tokenizer", "transformer", "vae"];
    let folder = linked(name, &parts, |index| index["_dit"] = native);
    let scheduler = json!({
        "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++",
        "prediction_type": "flow_prediction", "use_flow_sigmas": true, "flow_shift": 3.0
    });
    let path = folder.path().join("scheduler");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("scheduler_config.json"), scheduler.to_string()).unwrap();
    folder
}

/// Windowed and causal folders of both families, with either kind of solver.
pub fn rolling_folders() -> Vec<tempfile::TempDir> {
    let windowed = json!({"num_frames": 9, "num_inference_steps": 2, "context_latent_frames": 1});
    let causal = json!({
        "num_frames": 13, "num_inference_steps": 2, "causal": true, "block_latent_frames": 1,
        "latent_lock": 1.0
    });
    FOLDERS
        .iter()
        .flat_map(|name| [with_native(name, windowed.clone()), with_native(name, causal.clone())])
        .chain([&windowed, &causal].map(|native| {
            let mut native = native.clone();
            native["num_inference_steps"] = 3.into();
            stochastic("ti2v_public", native)
        }))
        .collect()
}

/// One thing the reference computed.
#[derive(Debug, Deserialize)]
pub struct Case {
    pub name: String,
    pub kind: String,
    pub params: serde_json::Value,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
}

impl Case {
    /// The number in `params` under `name`.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.params.get(name).and_then(serde_json::Value::as_f64)
    }

    /// The whole number in `params` under `name`.
    pub fn count(&self, name: &str) -> usize {
        let value = self.params.get(name).and_then(serde_json::Value::as_u64);
        value.unwrap_or_else(|| panic!("{}: no whole number `{name}`", self.name)) as usize
    }

    /// The text in `params` under `name`.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.params.get(name).and_then(serde_json::Value::as_str)
    }

    /// The key of this case that ends in `.suffix`.
    pub fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.name)
    }
}

/// The cases and tensors of one fixture folder.
pub struct Golden {
    pub folder: PathBuf,
    pub cases: Vec<Case>,
    tensors: BTreeMap<String, Tensor>,
}

impl Golden {
    /// Reads the golden files of `tests/fixtures/NAME`.
    pub fn load(name: &str) -> Self {
        #[derive(Deserialize)]
        struct Index {
            cases: Vec<Case>,
        }
        let folder = fixture(name);
        let text = std::fs::read_to_string(folder.join("golden.json")).unwrap();
        let index: Index = serde_json::from_str(&text).unwrap();
        let tensors = Tensor::read_safetensors(folder.join("golden.safetensors")).unwrap();
        Self { folder, cases: index.cases, tensors: tensors.into_iter().collect() }
    }

    /// The cases of one kind; there must be some.
    pub fn of_kind(&self, kind: &str) -> Vec<&Case> {
        let cases: Vec<&Case> = self.cases.iter().filter(|case| case.kind == kind).collect();
        assert!(!cases.is_empty(), "{}: no case of kind {kind}", self.folder.display());
        cases
    }

    /// The tensor under `key`.
    pub fn tensor(&self, key: &str) -> &Tensor {
        self.tensors
            .get(key)
            .unwrap_or_else(|| panic!("{}: no tensor {key}", self.folder.display()))
    }
}

/// How far `candidate` is from `golden`: `max |golden - candidate| / max(1, max |golden|)`.
///
/// # Errors
/// Another shape, a value that is not finite, or integers that are not equal.
pub fn deviation(golden: &Tensor, candidate: &Tensor) -> Result<f64, String> {
    if golden.size() != candidate.size() {
        return Err(format!("shape {:?}, expected {:?}", candidate.size(), golden.size()));
    }
    if golden.numel() == 0 {
        return Ok(0.0);
    }
    let (wide, found) = (golden.to_kind(Kind::Double), candidate.to_kind(Kind::Double));
    if found.isfinite().all().int64_value(&[]) == 0 {
        return Err("values that are not finite".to_owned());
    }
    let worst = (&wide - found).abs().max().double_value(&[]);
    if !golden.is_floating_point() && worst != 0.0 {
        return Err(format!("integers differ by up to {worst}"));
    }
    Ok(worst / wide.abs().max().double_value(&[]).max(1.0))
}

/// Gathers comparisons, so that one run shows every key that is off.
#[derive(Default)]
pub struct Report {
    compared: usize,
    worst: f64,
    worst_key: String,
    failures: Vec<String>,
}

impl Report {
    /// Compares `candidate` with the golden tensor under `key`; the bar is `tolerance`, scaled.
    pub fn check(&mut self, golden: &Golden, key: &str, candidate: &Tensor, tolerance: f64) {
        self.compare(key, golden.tensor(key), candidate, tolerance);
    }

    /// Compares `candidate` with `expected`, shown as `key`.
    pub fn compare(&mut self, key: &str, expected: &Tensor, candidate: &Tensor, tolerance: f64) {
        self.compared += 1;
        match deviation(expected, candidate) {
            Err(what) => self.failures.push(format!("{key}: {what}")),
            Ok(scaled) => {
                if scaled > tolerance {
                    self.failures.push(format!("{key}: off by {scaled:.3e}, bar {tolerance:.0e}"));
                }
                if scaled > self.worst {
                    (self.worst, self.worst_key) = (scaled, key.to_owned());
                }
            }
        }
    }

    /// Prints the worst figure and fails if any key was off.
    pub fn finish(self, what: &str) {
        println!(
            "{what}: {} compared, worst {:.3e} ({})",
            self.compared, self.worst, self.worst_key
        );
        assert!(self.compared > 0, "{what}: nothing compared");
        assert!(self.failures.is_empty(), "{what}:\n{}", self.failures.join("\n"));
    }
}
