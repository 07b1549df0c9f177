// SPDX-License-Identifier: MPL-2.0
//! The engine's one error type: every variant says what was found, what was expected and what to do.

use std::path::PathBuf;

/// Shorthand for results of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a checkpoint folder and a finished frame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder of a checkpoint is missing, unreadable or malformed.
    #[error("{}: {what}", path.display())]
    Checkpoint { path: PathBuf, what: String },
    /// The configuration asks for tensors that the files do not hold.
    #[error("{}: {} tensor(s) missing that the configuration asks for: {}. Is this the folder of another model or an incomplete download?", folder.display(), names.len(), listed(names))]
    MissingTensors { folder: PathBuf, names: Vec<String> },
    /// The files hold tensors that the configuration has no place for.
    #[error("{}: {} tensor(s) that the configuration has no place for: {}. Does config.json belong to these weights?", folder.display(), names.len(), listed(names))]
    UnexpectedTensors { folder: PathBuf, names: Vec<String> },
    /// A tensor has another shape than the configuration says.
    #[error("{}: tensor {name} has shape {found:?}, but the configuration expects {expected:?}. Does config.json belong to these weights?", folder.display())]
    Shape { folder: PathBuf, name: String, found: Vec<i64>, expected: Vec<i64> },
    /// A configuration value or a property cannot be used.
    #[error("{name}: found {found}, expected {expected}")]
    Setting { name: String, found: String, expected: String },
    /// A device was asked for that is not there.
    #[error("device {device}: {what}")]
    Device { device: String, what: String },
    /// The request does not fit into memory.
    #[error(
        "not enough memory on {device}: {needed_mib} MiB needed ({breakdown}), {available_mib} MiB available; {advice}"
    )]
    OutOfMemory {
        device: String,
        needed_mib: u64,
        available_mib: u64,
        breakdown: String,
        advice: String,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(String),
    /// An operating system call failed.
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// A malformed or missing part of a checkpoint.
    pub fn checkpoint(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.into(), what: what.into() }
    }

    /// A value that cannot be used, with what would do.
    pub fn setting(
        name: impl Into<String>,
        found: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Setting { name: name.into(), found: found.to_string(), expected: expected.into() }
    }

    /// An operating system error with the path it is about.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(first_line(&error.to_string()))
    }
}

/// libtorch's messages carry a C++ backtrace; only what precedes it is for people.
pub(crate) fn first_line(message: &str) -> String {
    let message = message.split("Exception raised from").next().unwrap_or(message);
    message
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("unknown error")
        .to_owned()
}

/// The first few of a list of names, and how many more there are.
pub(crate) fn listed(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_backtraces_are_cut() {
        let text = "The size of tensor a (3) must match\nException raised from infer_size at foo.cpp:1\nframe #0";
        assert_eq!(first_line(text), "The size of tensor a (3) must match");
    }

    #[test]
    fn long_lists_are_shortened() {
        let names: Vec<String> = (0..20).map(|i| format!("t{i}")).collect();
        let error = Error::MissingTensors { folder: "f".into(), names };
        assert!(error.to_string().contains("t7 and 12 more"));
    }
}
