// SPDX-License-Identifier: MPL-2.0
//! Restyles clips with `ditfilter` in five styles at three strengths, and shows input over output.
//!
//! `cargo run --release --features training --example restyle_sheet -- OUT_FOLDER [CLIP.mp4 ...] [PROPERTY=VALUE ...]`
//!
//! Clips are three scenes of the drawn world, two test patterns of `videotestsrc`, and the files named. Each has a sheet
//! `OUT_FOLDER/CLIP.png`: the input in the first row, then style by style, strength by strength. What is printed is the
//! flicker: the mean change from frame to frame, in levels of 255, at places where the input stands still. Properties
//! like `steps=6` are set on the filter.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use gst::prelude::*;
use gstdit::pipeline::{RgbFrame, video_of};
use gstdit::training::sheet;
use gstdit::training::world::{Scene, Split};

const SIZE: (usize, usize) = (224, 128);
const FPS: i32 = 16;
const FRAMES: usize = 33;
const COLUMNS: i64 = 5;
const STYLES: [&str; 5] = ["jungle", "1920s", "underwater", "rainbow", "pixel-art"];
const STRENGTHS: [f64; 3] = [0.3, 0.5, 0.7];
/// Largest change of a channel at a place that stands still.
const STILL: u8 = 2;

/// Something to restyle.
struct Clip {
    name: String,
    frames: Vec<RgbFrame>,
}

fn main() -> Result<()> {
    gst::init()?;
    gstdit::plugin_register_static()?;
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().context("where to write the sheets, as a folder")?);
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let (properties, files): (Vec<String>, Vec<String>) = args.partition(|arg| arg.contains('='));
    let mut clips = world_clips();
    for pattern in ["smpte", "ball"] {
        let source = format!("videotestsrc num-buffers={FRAMES} pattern={pattern}");
        clips.push(Clip { name: pattern.into(), frames: decoded(&source)? });
    }
    for file in &files {
        let name = Path::new(file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let source = format!("filesrc location=\"{file}\" ! decodebin");
        clips.push(Clip { name, frames: decoded(&source)? });
    }
    println!("clip         style       strength  flicker  still part");
    for clip in &clips {
        show(clip, &properties, &folder)?;
    }
    Ok(())
}

/// A moving thing over three backgrounds, in the plain style.
fn world_clips() -> Vec<Clip> {
    let plain = |scene: &Scene| scene.attributes.style.name() == "none";
    let scenes = (0..).map(|index| (index, Scene::from_index(index, Split::Any)));
    scenes
        .filter(|(_, scene)| plain(scene))
        .take(3)
        .map(|(index, scene)| {
            let bytes = scene.render(SIZE.0, SIZE.1, FRAMES, 0, f64::from(FPS));
            let frames = bytes.chunks(SIZE.0 * SIZE.1 * 3).map(frame).collect();
            Clip { name: format!("world-{index}"), frames }
        })
        .collect()
}

fn frame(data: &[u8]) -> RgbFrame {
    RgbFrame { width: SIZE.0, height: SIZE.1, data: data.to_vec() }
}

/// Runs a pipeline to its end and keeps what passes the source pad of the element `tap`.
fn collected(line: &str, feed: impl FnOnce(&gst::Pipeline)) -> Result<Vec<RgbFrame>> {
    let pipeline = gst::parse::launch(line)?.downcast::<gst::Pipeline>();
    let Ok(pipeline) = pipeline else { bail!("no pipeline: {line}") };
    let frames = Arc::new(Mutex::new(Vec::new()));
    let kept = frames.clone();
    let tap = pipeline.by_name("tap").and_then(|tap| tap.static_pad("src")).context("no tap")?;
    tap.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let (Some(buffer), Ok(mut kept)) = (info.buffer(), kept.lock())
            && let Ok(map) = buffer.map_readable()
            && kept.len() < FRAMES
        {
            kept.push(frame(&map));
        }
        gst::PadProbeReturn::Ok
    });
    pipeline.set_state(gst::State::Playing)?;
    feed(&pipeline);
    let bus = pipeline.bus().context("no bus")?;
    let message = bus.timed_pop_filtered(None, &[gst::MessageType::Eos, gst::MessageType::Error]);
    pipeline.set_state(gst::State::Null)?;
    if let Some(gst::MessageView::Error(error)) = message.as_ref().map(|message| message.view()) {
        bail!("{}", error.error());
    }
    Ok(frames.lock().map(|mut frames| std::mem::take(&mut *frames)).unwrap_or_default())
}

fn caps() -> String {
    format!("video/x-raw,format=RGB,width={},height={},framerate={FPS}/1", SIZE.0, SIZE.1)
}

/// The first frames of a source, at the model's own size and rate.
fn decoded(source: &str) -> Result<Vec<RgbFrame>> {
    let caps = caps();
    let line = format!(
        "{source} ! videoconvert ! videoscale ! videorate ! {caps},pixel-aspect-ratio=1/1 \
         ! identity name=tap eos-after={} ! fakesink sync=false",
        FRAMES + 1
    );
    collected(&line, |_| ())
}

fn restyled(
    clip: &Clip,
    style: &str,
    strength: f64,
    properties: &[String],
) -> Result<Vec<RgbFrame>> {
    let line = format!(
        "appsrc name=source format=time caps=\"{}\" ! ditfilter name=tap {} ! fakesink sync=false",
        caps(),
        properties.join(" ")
    );
    collected(&line, |pipeline| {
        let (Some(source), Some(filter)) = (pipeline.by_name("source"), pipeline.by_name("tap"))
        else {
            return;
        };
        if let Some(presets) = filter.dynamic_cast_ref::<gst::Preset>()
            && presets.load_preset(style).is_err()
        {
            eprintln!("no preset {style}");
        }
        filter.set_property("strength", strength);
        for (number, frame) in clip.frames.iter().enumerate() {
            let mut buffer = gst::Buffer::from_slice(frame.data.clone());
            if let Some(buffer) = buffer.get_mut() {
                let at = |number: usize| {
                    gst::ClockTime::from_nseconds(number as u64 * 1_000_000_000 / FPS as u64)
                };
                buffer.set_pts(at(number));
                buffer.set_duration(at(number + 1) - at(number));
            }
            source.emit_by_name::<gst::FlowReturn>("push-buffer", &[&buffer]).into_result().ok();
        }
        source.emit_by_name::<gst::FlowReturn>("end-of-stream", &[]).into_result().ok();
    })
}

fn show(clip: &Clip, properties: &[String], folder: &Path) -> Result<()> {
    let size = (SIZE.0 as i64, SIZE.1 as i64);
    let mut rows = vec![video_of(&clip.frames, size)?];
    let print = |style: &str, strength: String, frames: &[RgbFrame]| {
        let (change, part) = flicker(&clip.frames, frames);
        println!("{:12} {style:11} {strength:8}  {change:7.2}  {:9.0}%", clip.name, part * 100.0);
    };
    print("(input)", String::new(), &clip.frames);
    for style in STYLES {
        for strength in STRENGTHS {
            let frames = restyled(clip, style, strength, properties)?;
            print(style, strength.to_string(), &frames);
            rows.push(video_of(&frames, size)?);
        }
    }
    let rows: Vec<_> = rows.iter().collect();
    sheet::write(&folder.join(format!("{}.png", clip.name)), &rows, COLUMNS)
}

/// Mean change of `output` from frame to frame where `input` stands still, in levels, and how much of it does.
fn flicker(input: &[RgbFrame], output: &[RgbFrame]) -> (f64, f64) {
    let (mut sum, mut still, mut all) = (0u64, 0u64, 0u64);
    for (inputs, outputs) in input.windows(2).zip(output.windows(2)) {
        let pixels = |pair: &[RgbFrame]| {
            let both = pair[0].data.chunks_exact(3).zip(pair[1].data.chunks_exact(3));
            both.map(|(a, b)| [0, 1, 2].map(|c| a[c].abs_diff(b[c]))).collect::<Vec<_>>()
        };
        for (before, after) in pixels(inputs).iter().zip(pixels(outputs)) {
            all += 1;
            if before.iter().all(|&change| change <= STILL) {
                still += 1;
                sum += after.iter().map(|&change| u64::from(change)).sum::<u64>();
            }
        }
    }
    (sum as f64 / (3 * still.max(1)) as f64, still as f64 / all.max(1) as f64)
}
