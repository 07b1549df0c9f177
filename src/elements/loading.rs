// SPDX-License-Identifier: MPL-2.0
//! From the properties to an opened session: where the model lies, which device is meant, progress and
//! error messages. The same for all elements.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use gst::prelude::*;

use crate::error::{Error, Result};
use crate::pipeline::FolderInfo;
use crate::session::{Event, Opening};
use crate::torch;

use super::settings::Settings;

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "ditloading",
        gst::DebugColorFlags::empty(),
        Some("Loading of models for the dit elements"),
    )
});

/// What a model is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Video out of nothing, or between others.
    Making,
    /// Other video in another style, for which a folder may have weights of its own.
    Restyling,
}

/// Checks everything that is cheap to check and says how to open the session.
///
/// # Errors
/// A folder that is missing or whose configuration is not usable, a device that is not there.
pub fn opening(settings: &Settings, purpose: Purpose) -> Result<Opening> {
    torch::check_device_syntax(&settings.device)?;
    let folder = match settings.model_path() {
        Some(folder) => existing(folder)?,
        None => default_model()?,
    };
    let info = FolderInfo::open(&folder)?;
    let info = match purpose {
        Purpose::Making => info,
        Purpose::Restyling => info.for_restyling()?,
    };
    let info = Arc::new(match settings.lora() {
        Some((path, scale)) => info.with_lora(&path, scale)?,
        None => info,
    });
    Ok(Opening {
        info,
        device: torch::resolve_device(&settings.device)?,
        precision: settings.precision.into(),
        threads: settings.threads,
    })
}

fn existing(folder: PathBuf) -> Result<PathBuf> {
    if folder.is_dir() {
        return Ok(folder);
    }
    let what = if folder.exists() {
        "is not a folder; model-path names the folder that holds model_index.json"
    } else {
        "no such folder; model-path names the folder that holds model_index.json"
    };
    Err(Error::checkpoint(folder, what))
}

/// The folder of the model that comes with the plugin.
///
/// Looked for beside the plugin file, then in the share folder of the prefix that it is installed in,
/// then in the source tree that it was built from.
///
/// # Errors
/// [`Error::Checkpoint`] with the places where it was looked for.
pub fn default_model() -> Result<PathBuf> {
    let places = default_model_places();
    let found = places.iter().find(|place| place.join("model_index.json").is_file());
    // Without the way through the plugin's folder, which is for nobody to read.
    found.map(|place| place.canonicalize().unwrap_or_else(|_| place.clone())).ok_or_else(|| {
        let listed: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        let what = format!(
            "the model that comes with the plugin is not there (looked in {}); install it or set model-path",
            listed.join(", ")
        );
        Error::checkpoint("models/default", what)
    })
}

fn default_model_places() -> Vec<PathBuf> {
    let beside = plugin_folder().map(|folder| folder.join("gst-dit-models/default"));
    let shared = places("share/gst-plugin-dit/models/default", "models/default");
    beside.into_iter().chain(shared).collect()
}

/// Where something installed below a prefix as `installed` may be, and in the source tree as `source`.
fn places(installed: &str, source: &str) -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(folder) = plugin_folder() {
        for up in ["../..", "../../.."] {
            places.push(folder.join(up).join(installed));
        }
        places.push(folder.join("../..").join(source));
    }
    places.push(Path::new(env!("CARGO_MANIFEST_DIR")).join(source));
    places
}

/// Tells GStreamer where the presets of this plugin lie, if they are not where it looks by itself and the application has
/// no folder of its own.
pub fn find_presets() {
    if gst::Preset::app_dir().is_some() {
        return;
    }
    let places = places("share/gstreamer-1.0/presets", "presets");
    let found = places.iter().find(|place| place.join("GstDitFilter.prs").is_file());
    if let Some(folder) = found.and_then(|folder| folder.canonicalize().ok())
        && gst::Preset::set_app_dir(&folder).is_err()
    {
        gst::warning!(CAT, "GStreamer does not take {} as a folder of presets", folder.display());
    }
}

/// The folder of `libgstdit.so`, or of the program where the plugin is linked into one.
fn plugin_folder() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    // Address, permissions, offset, device and inode come before the path, which may hold spaces.
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let is_plugin = |path: &&Path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("libgstdit") && name.contains(".so"))
    };
    let program = || std::env::current_exe().ok();
    let file = paths.into_iter().find(is_plugin).map(Path::to_owned).or_else(program)?;
    file.parent().map(Path::to_owned)
}

/// An error as GStreamer reports it: domain and code for programs, the whole sentence for people.
pub fn error_message(error: &Error) -> gst::ErrorMessage {
    let text = error.to_string();
    let debug = format!("{error:?}");
    match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            gst::error_msg!(gst::ResourceError::NotFound, ("{text}"), ["{debug}"])
        }
        Error::Io { .. } => {
            gst::error_msg!(gst::ResourceError::OpenRead, ("{text}"), ["{debug}"])
        }
        Error::Checkpoint { path, .. } if !path.exists() => {
            gst::error_msg!(gst::ResourceError::NotFound, ("{text}"), ["{debug}"])
        }
        Error::OutOfMemory { .. } => {
            gst::error_msg!(gst::ResourceError::NoSpaceLeft, ("{text}"), ["{debug}"])
        }
        Error::Setting { .. } | Error::Device { .. } => {
            gst::error_msg!(gst::ResourceError::Settings, ("{text}"), ["{debug}"])
        }
        Error::Torch(_) => gst::error_msg!(gst::LibraryError::Failed, ("{text}"), ["{debug}"]),
        _ => gst::error_msg!(gst::ResourceError::Read, ("{text}"), ["{debug}"]),
    }
}

/// The progress of one load, as messages on the bus.
pub struct Progress {
    element: glib::WeakRef<gst::Element>,
    running: AtomicBool,
}

impl Progress {
    const CODE: &str = "open";

    /// Posts START; the element is held weakly.
    pub fn start(element: &impl IsA<gst::Element>, folder: &Path) -> Arc<Self> {
        let element = element.upcast_ref::<gst::Element>();
        let progress =
            Arc::new(Self { element: element.downgrade(), running: AtomicBool::new(true) });
        progress.post(gst::ProgressType::Start, &format!("Loading {}", folder.display()));
        progress
    }

    /// Turns what the session reports into messages.
    pub fn handle(&self, event: &Event) {
        match event {
            Event::Loading(phase) => self.post(gst::ProgressType::Continue, phase),
            Event::Loaded => self.finish(gst::ProgressType::Complete, "Model loaded"),
            Event::Failed(error) => {
                if let Some(element) = self.element.upgrade() {
                    gst::error!(CAT, obj = element, "{error}");
                    element.post_error_message(error_message(error));
                }
                self.finish(gst::ProgressType::Error, "The model could not be loaded");
            }
        }
    }

    /// Posts CANCELED unless loading has come to an end already.
    pub fn cancel(&self) {
        self.finish(gst::ProgressType::Canceled, "Loading cancelled");
    }

    fn finish(&self, kind: gst::ProgressType, text: &str) {
        if self.running.swap(false, Ordering::SeqCst) {
            self.post(kind, text);
        }
    }

    fn post(&self, kind: gst::ProgressType, text: &str) {
        if let Some(element) = self.element.upgrade() {
            gst::debug!(CAT, obj = element, "{kind:?}: {text}");
            let message =
                gst::message::Progress::builder(kind, Self::CODE, text).src(&element).build();
            // Without a bus there is nobody to tell, which is no error.
            let _ = element.post_message(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named_in_the_error_or_the_model_is_there() {
        match default_model() {
            Ok(folder) => assert!(folder.join("model_index.json").is_file()),
            Err(error) => assert!(error.to_string().contains("gst-dit-models/default"), "{error}"),
        }
    }

    #[test]
    fn a_missing_folder_says_what_model_path_is() {
        let settings = Settings { model_path: "/no/such/folder".into(), ..Settings::default() };
        let error = opening(&settings, Purpose::Making).unwrap_err();
        assert!(error.to_string().contains("model_index.json"), "{error}");
    }
}
