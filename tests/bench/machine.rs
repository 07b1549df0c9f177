// SPDX-License-Identifier: MPL-2.0
//! What a result was measured with.

use std::process::Command;

use gstdit::torch;
use serde_json::{Value, json};

/// Processor, memory, system and versions.
pub fn describe() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    json!({
        "cpu": torch::processor(),
        "cores": torch::cores(),
        "memory": torch::system_value("/proc/meminfo", "MemTotal:"),
        "load": read("/proc/loadavg").split(' ').next(),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "gstreamer": gst::version_string().as_str(),
        "libtorch": torch::LIBTORCH,
    })
}

/// The commit of the working tree, with a mark if something in it was changed.
pub fn commit() -> String {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => env!("COMMIT_ID").to_owned(),
    }
}

/// Most memory that this process has had in use.
pub fn peak_mib() -> Option<f64> {
    torch::peak_memory().map(|bytes| bytes as f64 / f64::from(1 << 20))
}
