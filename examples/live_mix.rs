// SPDX-License-Identifier: MPL-2.0
//! Mixes two live streams while a controller sweeps `mix` back and forth, and watches that timestamps are exact, that
//! both ends are the streams byte for byte, and that memory stays flat.
//!
//! `cargo run --release --example live_mix -- [SECONDS] [FRAMES A SECOND] [PROPERTIES OF ditmixer...]`, for example
//! `-- 600 16 steps=4 processing-latency=1000000000`; fewer frames a second than 16 for a machine that is slower or busy.
//!
//! It ends with 1 if anything was not as it should be.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use gst::prelude::*;
use gst_controller::prelude::*;

const SIZE: &str = "video/x-raw,format=RGB,width=224,height=128";
/// Seconds at one stream, on the way, at the other, and on the way back.
const COURSE: [u64; 4] = [2, 3, 2, 3];
/// Memory that may come and go, in MiB.
const SLACK: u64 = 64;

/// What was seen of the streams and of the output.
#[derive(Default)]
struct Seen {
    /// What either stream showed when, by the time of its frames; the latest few.
    inputs: [BTreeMap<u64, u64>; 2],
    last: Option<u64>,
    frames: u64,
    gaps: Vec<(u64, u64)>,
    exact: [u64; 2],
    inexact: Vec<u64>,
    /// Playing time of a frame in nanoseconds.
    frame: u64,
    messages: HashMap<String, u64>,
}

fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn digest(buffer: &gst::BufferRef) -> u64 {
    let mut hasher = DefaultHasher::new();
    if let Ok(map) = buffer.map_readable() {
        map.as_slice().hash(&mut hasher);
    }
    hasher.finish()
}

/// The stream that the course is exactly at, if it is.
fn end_at(time: u64) -> Option<usize> {
    let whole: u64 = COURSE.iter().sum::<u64>() * 1_000_000_000;
    let within = time % whole;
    let [first, up, second, _] = COURSE.map(|seconds| seconds * 1_000_000_000);
    if within <= first {
        Some(0)
    } else if (first + up..=first + up + second).contains(&within) {
        Some(1)
    } else {
        None
    }
}

fn main() -> Result<()> {
    gst::init()?;
    gstdit::plugin_register_static()?;
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().map_or(Ok(30), |text| text.parse()).context("SECONDS")?;
    let mut properties: Vec<String> = args.collect();
    let rate = properties.first().and_then(|text| text.parse().ok());
    if rate.is_some() {
        properties.remove(0);
    }
    let rate: u64 = rate.unwrap_or(16);
    ensure!((1..=1000).contains(&rate), "FRAMES A SECOND: {rate}");
    let caps = format!("{SIZE},framerate={rate}/1");
    let line = format!(
        "ditmixer name=mixer {} ! {caps} ! fakesink name=sink sync=true \
         videotestsrc is-live=true pattern=ball ! {caps} ! queue ! mixer.sink_0 \
         videotestsrc is-live=true pattern=pinwheel horizontal-speed=2 ! {caps} ! queue ! mixer.sink_1",
        properties.join(" ")
    );
    let pipeline =
        gst::parse::launch(&line)?.downcast::<gst::Pipeline>().ok().context("pipeline")?;
    let mixer = pipeline.by_name("mixer").context("mixer")?;
    steer(&mixer, seconds)?;
    let frame = 1_000_000_000 / rate;
    let seen = Arc::new(Mutex::new(Seen { frame, ..Seen::default() }));
    watch(&pipeline, &mixer, &seen)?;
    pipeline.set_state(gst::State::Playing)?;
    let memory = run(&pipeline, &seen, seconds)?;
    println!("{}", mixer.property::<gst::Structure>("stats"));
    pipeline.set_state(gst::State::Null)?;
    let seen = locked(&seen);
    report(&seen, &memory)
}

/// Lets a controller sweep `mix` along the course.
fn steer(mixer: &gst::Element, seconds: u64) -> Result<()> {
    let source = gst_controller::InterpolationControlSource::new();
    source.set_mode(gst_controller::InterpolationMode::Linear);
    let whole: u64 = COURSE.iter().sum();
    for round in 0..=seconds / whole + 1 {
        let mut at = round * whole;
        for (leg, value) in [(0, 0.0), (COURSE[0], 0.0), (COURSE[1], 1.0), (COURSE[2], 1.0)] {
            at += leg;
            source.set(gst::ClockTime::from_seconds(at), value);
        }
    }
    let binding = gst_controller::DirectControlBinding::new(mixer, "mix", &source);
    mixer.add_control_binding(&binding)?;
    Ok(())
}

fn watch(pipeline: &gst::Pipeline, mixer: &gst::Element, seen: &Arc<Mutex<Seen>>) -> Result<()> {
    for stream in 0..2 {
        let pad = mixer.static_pad(&format!("sink_{stream}")).context("sink pad")?;
        let seen = seen.clone();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some((buffer, pts)) = info.buffer().and_then(|it| Some((it, it.pts()?))) {
                let hash = digest(buffer);
                let inputs = &mut locked(&seen).inputs[stream];
                inputs.insert(pts.nseconds(), hash);
                while inputs.len() > 200 {
                    inputs.pop_first();
                }
            }
            gst::PadProbeReturn::Ok
        });
    }
    let pad = pipeline.by_name("sink").and_then(|sink| sink.static_pad("sink")).context("sink")?;
    let seen = seen.clone();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let Some((buffer, pts)) = info.buffer().and_then(|it| Some((it, it.pts()?))) {
            output(&mut locked(&seen), digest(buffer), pts.nseconds());
        }
        gst::PadProbeReturn::Ok
    });
    Ok(())
}

fn output(seen: &mut Seen, hash: u64, pts: u64) {
    let frame = seen.frame;
    // Rates that do not divide a second round to either side.
    if let Some(last) = seen.last.filter(|last| pts.abs_diff(last + frame) > 1) {
        seen.gaps.push((last, pts));
    }
    seen.last = Some(pts);
    seen.frames += 1;
    let Some(stream) = end_at(pts) else { return };
    // A live source's frames lie off the output's grid by less than a frame: any that was on show in this time counts.
    let shown = seen.inputs[stream].range(pts.saturating_sub(2 * frame)..pts + 2 * frame);
    if shown.into_iter().any(|(_, input)| *input == hash) {
        seen.exact[stream] += 1;
    } else {
        seen.inexact.push(pts);
    }
}

/// Plays for a while; memory in MiB at every tenth of it.
fn run(pipeline: &gst::Pipeline, seen: &Mutex<Seen>, seconds: u64) -> Result<Vec<u64>> {
    let bus = pipeline.bus().context("bus")?;
    let begun = std::time::Instant::now();
    let mut memory = Vec::new();
    while begun.elapsed().as_secs() < seconds {
        let tenths = begun.elapsed().as_millis() as u64 * 10 / (seconds * 1000).max(1);
        if memory.len() as u64 <= tenths {
            let used = resident()?;
            println!(
                "{:>5} s: {used} MiB, {} frames",
                begun.elapsed().as_secs(),
                locked(seen).frames
            );
            memory.push(used);
        }
        let Some(message) = bus.timed_pop(gst::ClockTime::from_mseconds(100)) else { continue };
        match message.view() {
            gst::MessageView::Error(error) => anyhow::bail!("{}", error.error()),
            gst::MessageView::Element(_) | gst::MessageView::Qos(_) => {
                let name = message.structure().map_or("qos".into(), |it| it.name().to_string());
                *locked(seen).messages.entry(name).or_default() += 1;
            }
            _ => (),
        }
    }
    memory.push(resident()?);
    Ok(memory)
}

/// Memory of this process in MiB.
fn resident() -> Result<u64> {
    let bytes = gstdit::torch::system_bytes("/proc/self/status", "VmRSS:");
    Ok(bytes.context("VmRSS")? >> 20)
}

fn report(seen: &Seen, memory: &[u64]) -> Result<()> {
    println!("{} frames, gaps in time: {:?}", seen.frames, seen.gaps);
    println!("at the ends: {:?} exact, not: {:?}", seen.exact, seen.inexact);
    println!("messages: {:?}", seen.messages);
    // The model's first chunks fill its caches.
    let settled = memory.get(memory.len() / 2).copied().unwrap_or_default();
    let grown = memory.last().copied().unwrap_or_default().saturating_sub(settled);
    println!("memory: {memory:?} MiB, {grown} more than half-way");
    ensure!(seen.frames > 0, "no frames came out");
    ensure!(seen.gaps.is_empty(), "timestamps are not exact");
    ensure!(seen.inexact.is_empty(), "an end is not exactly its stream");
    ensure!(seen.exact[0] > 0, "the course never came to an end");
    ensure!(grown <= SLACK, "memory grows");
    println!("all as it should be");
    Ok(())
}
