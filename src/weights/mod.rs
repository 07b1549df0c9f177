// SPDX-License-Identifier: MPL-2.0
//! Named weights for model constructors: the same constructor asks a file (inference) or a set of trainable
//! parameters (training) for each tensor, by name and shape.

pub mod lora;
pub mod safetensors;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::torch::kind_bytes;
use lora::{Adapter, Adapters, Lora};
pub use safetensors::Checkpoint;

/// How a parameter starts when it is made for training and no checkpoint holds it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    Zeros,
    Ones,
    /// Normal with this standard deviation.
    Normal(f64),
    /// Normal with standard deviation `gain / sqrt(fan_in)`, fan_in being all but the first dimension.
    FanIn(f64),
}

impl Init {
    fn tensor(self, shape: &[i64], device: Device) -> Result<Tensor> {
        let options = (Kind::Float, Device::Cpu);
        let fan_in: i64 = shape.iter().skip(1).product::<i64>().max(1);
        let tensor = match self {
            Self::Zeros => Tensor::f_zeros(shape, options)?,
            Self::Ones => Tensor::f_ones(shape, options)?,
            Self::Normal(std) => Tensor::f_randn(shape, options)?.f_mul_scalar(std)?,
            Self::FanIn(gain) => {
                Tensor::f_randn(shape, options)?.f_mul_scalar(gain / (fan_in as f64).sqrt())?
            }
        };
        Ok(tensor.f_to_device(device)?)
    }
}

/// Trainable leaf tensors by name, in f32; a checkpoint may give their first values.
#[derive(Default)]
pub struct Parameters {
    initial: Option<Checkpoint>,
    tensors: RefCell<BTreeMap<String, Tensor>>,
}

impl Parameters {
    /// Parameters that start from a checkpoint where it has them.
    pub fn starting_from(initial: Checkpoint) -> Self {
        Self { initial: Some(initial), tensors: RefCell::default() }
    }

    /// All parameters made so far, sorted by name; the tensors share their storage with the model's.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        self.tensors.borrow().iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect()
    }

    fn make(&self, name: &str, shape: &[i64], init: Init, device: Device) -> Result<Tensor> {
        if let Some(tensor) = self.tensors.borrow().get(name) {
            return Ok(tensor.shallow_clone());
        }
        let tensor = match &self.initial {
            Some(file) if file.shape(name).is_some() => {
                check_shape(file, name, shape)?;
                // A copy: training must never write through the map.
                file.float(name, Kind::Float, device)?.f_detach_copy()?
            }
            _ => init.tensor(shape, device)?,
        };
        let tensor = tensor.f_set_requires_grad(true)?;
        self.tensors.borrow_mut().insert(name.to_owned(), tensor.shallow_clone());
        Ok(tensor)
    }
}

/// Files whose tensors have been asked for, to tell at the end which have not.
pub struct Frozen {
    checkpoint: Checkpoint,
    used: RefCell<BTreeSet<String>>,
    /// Files to merge, and the component that these weights are in their keys.
    loras: Vec<Rc<Lora>>,
    component: String,
    adapters: Option<Adapters>,
}

/// Where weights come from.
pub enum Source {
    /// Files, for inference.
    Frozen(Frozen),
    /// Leaf tensors with gradients, for training.
    Trainable(Parameters),
}

impl Source {
    /// Weights of an opened checkpoint, for inference.
    pub fn frozen(checkpoint: Checkpoint) -> Self {
        let (used, loras, component) = Default::default();
        Self::Frozen(Frozen { checkpoint, used, loras, component, adapters: None })
    }

    /// The same weights with those of files merged into them, as far as they are meant for `component`.
    pub fn merged_with(mut self, loras: &[Rc<Lora>], component: &str) -> Self {
        if let Self::Frozen(frozen) = &mut self {
            frozen.loras = loras.to_vec();
            frozen.component = component.to_owned();
        }
        self
    }

    /// The same weights with adapters to train beside them.
    pub fn adapted(mut self, adapters: Adapters) -> Self {
        if let Self::Frozen(frozen) = &mut self {
            frozen.adapters = Some(adapters);
        }
        self
    }

    /// What is trained: all parameters, or the adapters of frozen weights, or nothing.
    pub fn parameters(&self) -> Option<&Parameters> {
        match self {
            Self::Trainable(parameters) => Some(parameters),
            Self::Frozen(frozen) => frozen.adapters.as_ref().map(Adapters::parameters),
        }
    }

    /// The root from which a model takes its tensors in `kind` on `device` (training is always f32).
    pub fn weights(&self, kind: Kind, device: Device) -> Weights<'_> {
        Weights { source: self, prefix: String::new(), kind, device, observer: None }
    }

    /// Reports tensors of the files that no constructor asked for; `ignored` says which may be there.
    ///
    /// # Errors
    /// [`Error::UnexpectedTensors`] with their names.
    pub fn check_all_used(&self, ignored: impl Fn(&str) -> bool) -> Result<()> {
        let Self::Frozen(frozen) = self else { return Ok(()) };
        let used = frozen.used.borrow();
        let names: Vec<String> = frozen
            .checkpoint
            .names()
            .filter(|name| !used.contains(*name) && !ignored(name))
            .map(str::to_owned)
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        Err(Error::UnexpectedTensors { folder: frozen.checkpoint.folder().to_owned(), names })
    }
}

/// A place in the tree of names, with the kind and device that tensors are wanted in.
#[derive(Clone)]
pub struct Weights<'a> {
    source: &'a Source,
    prefix: String,
    kind: Kind,
    device: Device,
    observer: Option<&'a dyn Fn(u64) -> Result<()>>,
}

impl<'a> Weights<'a> {
    /// The same place with `observer` told the bytes of each tensor taken; its error ends the construction.
    pub fn observed(mut self, observer: &'a dyn Fn(u64) -> Result<()>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// The place below, as checkpoint keys write it (`blocks`, `0`, `attn1`).
    pub fn pp(&self, name: impl Display) -> Self {
        let mut below = self.clone();
        below.prefix = self.path(&name.to_string());
        below
    }

    /// The same place with tensors wanted in another kind: the f32 islands of a half-precision model
    /// (training keeps everything in f32 anyway).
    pub fn with_kind(&self, kind: Kind) -> Self {
        let mut other = self.clone();
        other.kind = kind;
        other
    }

    /// Whether the files hold this tensor; a trainable source makes what it is asked for.
    pub fn contains(&self, name: &str) -> bool {
        match self.source {
            Source::Frozen(frozen) => frozen.checkpoint.shape(&self.path(name)).is_some(),
            Source::Trainable(_) => true,
        }
    }

    /// The tensor `name` of this place, whose shape must be `shape`; `init` only matters for training.
    ///
    /// # Errors
    /// [`Error::MissingTensors`], [`Error::Shape`], or [`Error::Checkpoint`] for values that are not weights.
    pub fn get(&self, name: &str, shape: &[i64], init: Init) -> Result<Tensor> {
        let path = self.path(name);
        match self.source {
            Source::Trainable(parameters) => parameters.make(&path, shape, init, self.device),
            Source::Frozen(frozen) => {
                if frozen.checkpoint.shape(&path).is_some() {
                    check_shape(&frozen.checkpoint, &path, shape)?;
                }
                let tensor = self.merged(frozen, &path, shape)?;
                frozen.used.borrow_mut().insert(path);
                if let Some(observer) = self.observer {
                    observer(tensor.numel() as u64 * kind_bytes(self.kind))?;
                }
                Ok(tensor)
            }
        }
    }

    /// A tensor of the files with what LoRAs add to it.
    fn merged(&self, frozen: &Frozen, path: &str, shape: &[i64]) -> Result<Tensor> {
        let layer = path.strip_suffix(".weight");
        let mut merged: Option<Tensor> = None;
        for (lora, layer) in frozen.loras.iter().filter_map(|lora| Some((lora, layer?))) {
            if let Some(change) = lora.change(&frozen.component, layer, shape, self.device)? {
                let weight = match merged {
                    Some(weight) => weight,
                    None => frozen.checkpoint.float(path, Kind::Float, self.device)?,
                };
                merged = Some(weight.f_add(&change)?);
            }
        }
        match merged {
            None => frozen.checkpoint.float(path, self.kind, self.device),
            Some(weight) => Ok(weight.f_to_kind(self.kind)?),
        }
    }

    /// The adapter to be trained beside the layer of this place, whose weight is `[output, input]`, if there is to be one.
    ///
    /// # Errors
    /// Those of [`Weights::get`].
    pub fn adapter(&self, output: i64, input: i64) -> Result<Option<Adapter>> {
        match self.source {
            Source::Frozen(Frozen { adapters: Some(adapters), .. }) => {
                adapters.adapter(&self.prefix, [output, input], self.device)
            }
            _ => Ok(None),
        }
    }

    /// The kind that tensors are wanted in.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The device that tensors are wanted on.
    pub fn device(&self) -> Device {
        self.device
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

fn check_shape(checkpoint: &Checkpoint, name: &str, expected: &[i64]) -> Result<()> {
    match checkpoint.shape(name) {
        Some(found) if found != expected => Err(Error::Shape {
            folder: checkpoint.folder().to_owned(),
            name: name.to_owned(),
            found: found.to_vec(),
            expected: expected.to_vec(),
        }),
        _ => Ok(()),
    }
}
