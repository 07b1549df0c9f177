// SPDX-License-Identifier: MPL-2.0
//! The benchmark: frames a second of the elements from source to sink, start to first frame, peak memory, flicker,
//! milliseconds of each stage of the engine, and how long a registry scan of the plugin takes.
//!
//! `cargo bench --bench engine [-- OUT.json]`. Each case runs in a process of its own, so that peak memory and start-up
//! are its own. Results that are kept lie in `tests/bench/runs/<date>-<machine>.json`; a figure is worth keeping
//! only from a machine that has nothing else to do.

mod machine;
mod stages;
mod streams;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use gst::prelude::*;
use gstdit::pipeline::FolderInfo;
use serde_json::{Value, json};

/// Name, element properties, caps after it, frames.
const CASES: [(&str, &str, &str, u32); 6] = [
    ("native 224x128, default steps", "", "video/x-raw", 65),
    ("native 224x128, 4 steps, no guidance", "steps=4 guidance-scale=1", "video/x-raw", 65),
    ("native 224x128, default steps, 1 thread", "threads=1", "video/x-raw", 41),
    ("1280x720, default steps", "", "video/x-raw,width=1280,height=720", 65),
    ("single image 224x128", "", "video/x-raw", 1),
    ("single image 2048x2048", "", "video/x-raw,width=2048,height=2048", 1),
];
const STAGES: &str = "--stages";
/// Options that run one case, of `ditsrc` or of the other elements, in this process.
const CASE: &str = "--case=";
const STREAM: &str = "--stream=";
/// Titles and keys of the figures of a row.
type Columns<'a> = &'a [(&'a str, &'a str)];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let Some(case) = args.first().and_then(|arg| arg.strip_prefix(CASE)) {
        println!("{}", run_case(case.parse()?)?);
        return Ok(());
    }
    if let Some(case) = args.first().and_then(|arg| arg.strip_prefix(STREAM)) {
        println!("{}", streams::run_case(case.parse()?)?);
        return Ok(());
    }
    if args.first().is_some_and(|arg| arg == STAGES) {
        println!("{}", stages::measure(&gstdit::elements::loading::default_model()?)?);
        return Ok(());
    }
    let (machine, commit) = (machine::describe(), machine::commit());
    println!("{machine}\ncommit {commit}\n");
    let cases = print_table("`ditsrc`", CASE, CASES.map(|case| case.0).as_slice(), SOURCE_COLUMNS)?;
    let names = streams::CASES.map(|case| case.0);
    let streams = print_table("video in", STREAM, names.as_slice(), STREAM_COLUMNS)?;
    let stages = in_child(STAGES)?;
    print_stages(&stages);
    let scan = scan_ms()?;
    println!("\nregistry scan of the plugin: {scan:.0} ms");
    let result = json!({
        "command": "cargo bench --bench engine",
        "commit": commit,
        "machine": machine,
        "cases": cases,
        "streams": streams,
        "stages": stages,
        "scan_ms": scan,
    });
    if let Some(path) = args.first() {
        std::fs::write(path, serde_json::to_string_pretty(&result)? + "\n")
            .with_context(|| path.clone())?;
    }
    Ok(())
}

/// What this program prints as JSON when it is run with one argument.
fn in_child(argument: &str) -> Result<Value> {
    let output = Command::new(std::env::current_exe()?).arg(argument).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{argument}: {errors}");
    serde_json::from_slice(&output.stdout).with_context(|| format!("the figures of {argument}"))
}

const SOURCE_COLUMNS: Columns<'_> = &[
    ("frames/s", "fps"),
    ("first frame ms", "first_frame_ms"),
    ("denoise a chunk ms", "ms_denoise"),
    ("decode it ms", "ms_decode"),
    ("peak MiB", "peak_mib"),
];
const STREAM_COLUMNS: Columns<'_> = &[
    ("frames/s", "fps"),
    ("ms a frame", "ms_frame"),
    ("first frame ms", "first_frame_ms"),
    ("flicker of the input", "flicker_input"),
    ("of the output", "flicker_output"),
    ("peak MiB", "peak_mib"),
];

/// Runs cases, each in a process of its own, and prints a row of figures for each.
fn print_table(
    title: &str,
    option: &str,
    names: &[&str],
    columns: Columns<'_>,
) -> Result<Vec<Value>> {
    let titles: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
    println!("\n| {title} | {} |", titles.join(" | "));
    println!("|---|{}", "---|".repeat(columns.len()));
    let mut rows = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let row = in_child(&format!("{option}{index}"))?;
        let figure = |key: &str| row[key].as_f64().map_or("-".to_owned(), |v| format!("{v:.1}"));
        let found: Vec<String> = columns.iter().map(|(_, key)| figure(key)).collect();
        println!("| {name} | {} |", found.join(" | "));
        rows.push(row);
    }
    Ok(rows)
}

fn print_stages(stages: &Value) {
    println!("\n| stage of the engine | median ms | least | of |");
    println!("|---|---|---|---|");
    for stage in stages["stages"].as_array().into_iter().flatten() {
        let number = |key: &str| stage[key].as_f64().unwrap_or_default();
        println!(
            "| {} | {:.1} | {:.1} | {} |",
            stage["stage"].as_str().unwrap_or_default(),
            number("median_ms"),
            number("least_ms"),
            number("repeats")
        );
    }
}

/// Runs one pipeline and returns its figures.
fn run_case(index: usize) -> Result<Value> {
    let (name, properties, caps, frames) = CASES[index];
    gst::init()?;
    gstdit::plugin_register_static()?;
    let info = FolderInfo::open(&gstdit::elements::loading::default_model()?)?;
    let line = format!(
        "ditsrc name=src num-buffers={frames} seed=1 {properties} ! {caps} ! fakesink name=sink"
    );
    let pipeline =
        gst::parse::launch(&line)?.downcast::<gst::Pipeline>().ok().context("a pipeline")?;
    let started = Instant::now();
    let (times, stats) = play(&pipeline, "src")?;
    let stat = |field: &str| stats.get::<f64>(field).ok();
    let mut row = figures(&times, started, info.first_chunk_frames() as usize)?;
    let more = json!({
        "case": name,
        "line": line,
        "ms_denoise": stat("ms-denoise"),
        "ms_decode": stat("ms-decode"),
        "peak_mib": machine::peak_mib(),
    });
    if let (Some(row), Value::Object(more)) = (row.as_object_mut(), more) {
        row.extend(more);
    }
    Ok(row)
}

/// Plays a pipeline to its end: when each frame came to its `sink`, and the statistics of one of its elements.
fn play(pipeline: &gst::Pipeline, element: &str) -> Result<(Vec<Instant>, gst::Structure)> {
    let times = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&times);
    let pad = pipeline
        .by_name("sink")
        .and_then(|sink| sink.static_pad("sink"))
        .context("the sink's pad")?;
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(Instant::now());
        gst::PadProbeReturn::Ok
    });
    pipeline.set_state(gst::State::Playing)?;
    let bus = pipeline.bus().context("a bus")?;
    for message in bus.iter_timed(gst::ClockTime::NONE) {
        match message.view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(error) => anyhow::bail!("{}", error.error()),
            _ => {}
        }
    }
    let element = pipeline.by_name(element).context("the element")?;
    let stats = element.property::<gst::Structure>("stats");
    pipeline.set_state(gst::State::Null)?;
    let times = std::mem::take(&mut *times.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    Ok((times, stats))
}

/// What the times of frames say; `first` of them were there when the first one came.
fn figures(times: &[Instant], started: Instant, first: usize) -> Result<Value> {
    let (begin, end) = (*times.first().context("a frame")?, *times.last().context("a frame")?);
    // What was made after that is all the later ones.
    let later = times.len().saturating_sub(first);
    let fps = (later > 0).then(|| later as f64 / (end - begin).as_secs_f64());
    Ok(json!({
        "frames": times.len(),
        "fps": fps,
        "ms_frame": fps.map(|fps| 1e3 / fps),
        "first_frame_ms": (begin - started).as_secs_f64() * 1e3,
        "total_s": (end - started).as_secs_f64(),
    }))
}

/// Milliseconds that `gst-inspect-1.0` needs to scan the plugin with an empty registry, less those without it; the
/// median of a few.
fn scan_ms() -> Result<f64> {
    const REPEATS: usize = 5;
    let folder = tempfile::tempdir()?;
    let plugin = std::env::current_exe()?
        .ancestors()
        .map(|folder| folder.join("libgstdit.so"))
        .find(|path| path.exists())
        .context("libgstdit.so beside the benchmark; run cargo build --release first")?;
    let with = folder.path().join("with");
    std::fs::create_dir(&with)?;
    std::os::unix::fs::symlink(plugin, with.join("libgstdit.so"))?;
    let without = folder.path().join("without");
    std::fs::create_dir(&without)?;
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
    let scans = (0..REPEATS).map(|repeat| {
        let registry = |kind: &str| folder.path().join(format!("registry-{kind}-{repeat}"));
        Ok(time(&with, registry("with"))? - time(&without, registry("without"))?)
    });
    Ok(stages::median(scans.collect::<Result<_>>()?))
}
