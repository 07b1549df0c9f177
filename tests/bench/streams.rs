// SPDX-License-Identifier: MPL-2.0
//! Elements that video flows through, at the native size of the model: `ditfilter` and `ditmixer`.
//!
//! Flicker is the mean difference, in levels of eight bits, of neighbouring frames where the input stands still: what
//! it is of the input itself, and what the filter makes of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use gst::prelude::*;
use serde_json::{Value, json};

use super::{figures, machine, play};

/// Name and pipeline; its element is called `it`, and its sink `sink`.
pub const CASES: [(&str, &str); 5] = [
    (
        "ditfilter, default strength",
        "videotestsrc num-buffers=65 pattern=smpte ! CAPS ! ditfilter name=it seed=1 ! CAPS ! fakesink name=sink",
    ),
    (
        "ditfilter, 4 steps, no guidance",
        "videotestsrc num-buffers=65 pattern=smpte ! CAPS ! ditfilter name=it seed=1 steps=4 guidance-scale=1 ! CAPS \
         ! fakesink name=sink",
    ),
    (
        "ditmixer, half-way, default steps",
        "ditmixer name=it mix=0.5 seed=1 ! CAPS ! fakesink name=sink BALL ! it. PINWHEEL ! it.",
    ),
    (
        "ditmixer, half-way, 4 steps, no guidance",
        "ditmixer name=it mix=0.5 seed=1 steps=4 guidance-scale=1 ! CAPS ! fakesink name=sink BALL ! it. PINWHEEL ! it.",
    ),
    (
        "ditmixer, a fifth of the way, 4 steps, no guidance",
        "ditmixer name=it mix=0.2 seed=1 steps=4 guidance-scale=1 ! CAPS ! fakesink name=sink BALL ! it. PINWHEEL ! it.",
    ),
];
const CAPS: &str = "video/x-raw,format=RGB,width=224,height=128,framerate=16/1";
const SOURCES: [(&str, &str); 2] = [
    ("BALL", "videotestsrc num-buffers=65 pattern=ball ! CAPS ! queue"),
    ("PINWHEEL", "videotestsrc num-buffers=65 pattern=pinwheel horizontal-speed=2 ! CAPS ! queue"),
];
/// Levels up to which a place stands still.
const STILL: u8 = 1;

/// The frames that passed somewhere.
#[derive(Clone, Default)]
struct Tap(Arc<Mutex<Vec<Vec<u8>>>>);

impl Tap {
    /// What passes a pad from now on.
    fn on(pad: &gst::Pad) -> Self {
        let tap = Self::default();
        let kept = tap.clone();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some(map) = info.buffer().and_then(|buffer| buffer.map_readable().ok()) {
                kept.frames().push(map.to_vec());
            }
            gst::PadProbeReturn::Ok
        });
        tap
    }

    fn frames(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Mean difference of neighbouring frames of `frames` where those of `input` do not differ.
fn flicker(frames: &[Vec<u8>], input: &[Vec<u8>]) -> Option<f64> {
    let (mut sum, mut count) = (0u64, 0u64);
    for (pair, of) in frames.windows(2).zip(input.windows(2)) {
        let moved = of[0].iter().zip(&of[1]).map(|(one, other)| one.abs_diff(*other));
        let steps = pair[0].iter().zip(&pair[1]).map(|(one, other)| one.abs_diff(*other));
        for (step, _) in steps.zip(moved).filter(|(_, moved)| *moved <= STILL) {
            sum += u64::from(step);
            count += 1;
        }
    }
    (count > 0).then(|| sum as f64 / count as f64)
}

/// Runs one pipeline and returns its figures.
pub fn run_case(index: usize) -> Result<Value> {
    let (name, line) = CASES[index];
    gst::init()?;
    gstdit::plugin_register_static()?;
    let line =
        SOURCES.iter().fold(line.to_owned(), |line, (word, source)| line.replace(word, source));
    let line = line.replace("CAPS", CAPS);
    let pipeline =
        gst::parse::launch(&line)?.downcast::<gst::Pipeline>().ok().context("a pipeline")?;
    let element = pipeline.by_name("it").context("the element")?;
    // One input that is shown again: only there is something to compare.
    let input = element.static_pad("sink").map(|pad| Tap::on(&pad));
    let output = element.static_pad("src").map(|pad| Tap::on(&pad)).context("the source pad")?;
    let started = Instant::now();
    let (times, _) = play(&pipeline, "it")?;
    let mut row = figures(&times, started, first_frames(&times))?;
    let flickers = input.map(|input| {
        let (input, output) = (input.frames(), output.frames());
        (flicker(&input, &input), flicker(&output, &input))
    });
    let (of_input, of_output) = flickers.unwrap_or_default();
    let more = json!({
        "case": name,
        "line": line,
        "flicker_input": of_input,
        "flicker_output": of_output,
        "peak_mib": machine::peak_mib(),
    });
    if let (Some(row), Value::Object(more)) = (row.as_object_mut(), more) {
        row.extend(more);
    }
    Ok(row)
}

/// Frames that came with the first: what follows them was made after it.
fn first_frames(times: &[Instant]) -> usize {
    /// Frames of one chunk follow each other faster than this.
    const TOGETHER_MS: f64 = 20.0;
    let late = |pair: &[Instant]| (pair[1] - pair[0]).as_secs_f64() * 1e3 > TOGETHER_MS;
    times.windows(2).position(late).map_or(times.len(), |index| index + 1)
}
