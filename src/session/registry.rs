// SPDX-License-Identifier: MPL-2.0
//! One model instance per folder, LoRAs, device and precision in the whole process.
//!
//! The registry holds weak references only: the last session (or element) to let go of a model frees it.
//! Its lock covers finding or starting an instance, never loading, which happens on the model's thread.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, Weak};

use tch::{Device, Kind};

use crate::error::Result;
use crate::pipeline::FolderInfo;
use crate::torch::{Precision, device_name};

use super::locked;
use super::model::{Client, Model};
use super::signal::Signal;

type Key = (PathBuf, String, String, Vec<(PathBuf, u64)>);

static MODELS: LazyLock<Mutex<HashMap<Key, Weak<Model>>>> = LazyLock::new(Mutex::default);

fn key(info: &FolderInfo, device: Device, precision: Precision) -> Key {
    let resolved = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    let loras =
        info.loras.iter().map(|lora| (resolved(&lora.path), lora.scale.to_bits())).collect();
    let kind: Kind = precision.kind(device);
    (resolved(&info.folder), device_name(device), format!("{kind:?}"), loras)
}

/// Makes a client with `make` and attaches it to the model it asks for, which is started if need be.
///
/// # Errors
/// What starting the model's thread fails with.
pub(super) fn attach<C: Client + 'static>(
    info: Arc<FolderInfo>,
    device: Device,
    precision: Precision,
    make: impl FnOnce(Arc<Signal>) -> C,
) -> Result<(Arc<Model>, Arc<C>, bool)> {
    let mut models = locked(&MODELS);
    models.retain(|_, model| model.strong_count() > 0);
    let key = key(&info, device, precision);
    let found = models.get(&key).and_then(Weak::upgrade).filter(|model| !model.is_ended());
    let work = found.as_ref().map_or_else(Arc::default, |model| model.work());
    let client = Arc::new(make(work.clone()));
    // The registry and the model never keep it alive.
    let weak = Arc::downgrade(&client) as Weak<dyn Client>;
    if let Some(model) = found
        && let Some(ready) = model.attach(weak.clone())
    {
        return Ok((model, client, ready));
    }
    // There is none, or it ended in this very moment; `work` is only a signal.
    let model = Arc::new(Model::start(info, device, precision, work, weak)?);
    models.insert(key, Arc::downgrade(&model));
    Ok((model, client, false))
}

/// How many models this process holds.
pub fn loaded_models() -> usize {
    let models = locked(&MODELS);
    models.values().filter(|model| model.strong_count() > 0).count()
}
