// SPDX-License-Identifier: MPL-2.0
//! The benchmark: frames a second of `ditsrc` from sink to source, start to first frame, milliseconds of each stage,
//! peak memory, and how long a registry scan of the plugin takes.
//!
//! `cargo bench --bench engine [-- OUT.json]`. Each case runs in a process of its own, so that peak memory and start-up
//! are its own. Results that are kept lie in `tests/bench/runs/<date>-<machine>.json`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use gst::prelude::*;
use serde_json::{Value, json};

/// Name, element properties, caps after it, frames.
const CASES: [(&str, &str, &str, u32); 5] = [
    ("native 224x128, default steps", "", "video/x-raw", 65),
    ("native 224x128, 4 steps, no guidance", "steps=4 guidance-scale=1", "video/x-raw", 65),
    ("native 224x128, default steps, 1 thread", "threads=1", "video/x-raw", 41),
    ("1280x720, default steps", "", "video/x-raw,width=1280,height=720", 65),
    ("single image 224x128", "", "video/x-raw", 1),
];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let Some(case) = args.first().and_then(|arg| arg.strip_prefix("--case=")) {
        println!("{}", run_case(case.parse()?)?);
        return Ok(());
    }
    let mut rows = Vec::new();
    println!("| case | frames/s | first frame ms | denoise ms | decode ms | peak MiB |");
    println!("|---|---|---|---|---|---|");
    for (index, (name, ..)) in CASES.iter().enumerate() {
        let output =
            Command::new(std::env::current_exe()?).arg(format!("--case={index}")).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{name}: {errors}");
        let row: Value = serde_json::from_slice(&output.stdout).context("a case's figures")?;
        let figure = |name: &str| row[name].as_f64().map_or("-".to_owned(), |v| format!("{v:.1}"));
        println!(
            "| {name} | {} | {} | {} | {} | {} |",
            figure("fps"),
            figure("first_frame_ms"),
            figure("ms_denoise"),
            figure("ms_decode"),
            figure("peak_mib"),
        );
        rows.push(row);
    }
    let scan = scan_ms()?;
    println!("\nregistry scan of the plugin: {scan:.0} ms");
    let result = json!({ "machine": machine(), "commit": env!("COMMIT_ID"), "cases": rows, "scan_ms": scan });
    if let Some(path) = args.first() {
        std::fs::write(path, serde_json::to_string_pretty(&result)? + "\n")
            .with_context(|| path.clone())?;
    }
    Ok(())
}

/// Runs one pipeline and returns its figures.
fn run_case(index: usize) -> Result<Value> {
    let (name, properties, caps, frames) = CASES[index];
    gst::init()?;
    gstdit::plugin_register_static()?;
    let line = format!(
        "ditsrc name=src num-buffers={frames} seed=1 {properties} ! {caps} ! fakesink name=sink"
    );
    let pipeline =
        gst::parse::launch(&line)?.downcast::<gst::Pipeline>().ok().context("a pipeline")?;
    let times = Arc::new(Mutex::new(Vec::with_capacity(frames as usize)));
    let seen = Arc::clone(&times);
    let pad = pipeline
        .by_name("sink")
        .and_then(|sink| sink.static_pad("sink"))
        .context("the sink's pad")?;
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(Instant::now());
        gst::PadProbeReturn::Ok
    });
    let started = Instant::now();
    pipeline.set_state(gst::State::Playing)?;
    let bus = pipeline.bus().context("a bus")?;
    for message in bus.iter_timed(gst::ClockTime::NONE) {
        match message.view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(error) => anyhow::bail!("{}", error.error()),
            _ => {}
        }
    }
    let source = pipeline.by_name("src").context("the source")?;
    let stats = source.property::<gst::Structure>("stats");
    pipeline.set_state(gst::State::Null)?;
    let times = times.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (first, last) = (*times.first().context("a frame")?, *times.last().context("a frame")?);
    let stat = |field: &str| stats.get::<f64>(field).ok();
    // The first chunk is start-up; the rate is that of all frames after the first buffer of it.
    let fps = (times.len() > 1).then(|| (times.len() - 1) as f64 / (last - first).as_secs_f64());
    Ok(json!({
        "case": name,
        "line": line,
        "frames": times.len(),
        "fps": fps,
        "first_frame_ms": (first - started).as_secs_f64() * 1e3,
        "total_s": (last - started).as_secs_f64(),
        "ms_encode_prompt": stat("ms-encode-prompt"),
        "ms_denoise": stat("ms-denoise"),
        "ms_decode": stat("ms-decode"),
        "peak_mib": gstdit::torch::peak_memory().map(|bytes| bytes as f64 / (1 << 20) as f64),
    }))
}

/// Milliseconds that `gst-inspect-1.0` needs to scan the plugin with an empty registry, less those without it.
fn scan_ms() -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let plugin = std::env::current_exe()?
        .ancestors()
        .map(|folder| folder.join("libgstdit.so"))
        .find(|path| path.exists())
        .context("libgstdit.so beside the benchmark; run cargo build --release first")?;
    let with = folder.path().join("with");
    std::fs::create_dir(&with)?;
    std::os::unix::fs::symlink(plugin, with.join("libgstdit.so"))?;
    let time = |path: &Path, registry: PathBuf| -> Result<f64> {
        let started = Instant::now();
        // Without the system path fakesink is not found; only the scan is timed.
        Command::new("gst-inspect-1.0")
            .arg("--exists")
            .arg("fakesink")
            .env("GST_PLUGIN_PATH", path)
            .env("GST_PLUGIN_SYSTEM_PATH", "/nonexistent")
            .env("GST_REGISTRY", registry)
            .output()?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    let without = folder.path().join("without");
    std::fs::create_dir(&without)?;
    let empty = time(&without, folder.path().join("registry-without"))?;
    Ok(time(&with, folder.path().join("registry-with"))? - empty)
}

fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo").lines().find_map(|line| {
        line.strip_prefix("model name")
            .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned())
    });
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    json!({ "cpu": model, "cores": cores, "kernel": read("/proc/sys/kernel/osrelease").trim() })
}
