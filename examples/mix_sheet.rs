// SPDX-License-Identifier: MPL-2.0
//! Shows what lies between two videos: a sweep of the mix and a bridge, each over the plain crossfade of the same
//! frames, and a measure that tells the two apart.
//!
//! `cargo run --release --features training --example mix_sheet -- OUT [--model FOLDER] [--a WORDS|FILE] [--b WORDS|FILE]
//! [--prompt-a TEXT] [--prompt-b TEXT] [--creativity X] [--steps N] [--seed N]`
//!
//! WORDS is a scene of the drawn world, `red,circle,moving right,sea`; FILE is a video. Written are OUT/sweep.png (for
//! mix 0, 0.25, 0.5, 0.75, 1 a row of the model and a row of the crossfade) and OUT/bridge.png.
//!
//! *Double edges*: the edges of either picture that the other does not have, as far as both are there at once; a
//! crossfade half-way has half of each (0.5), one picture or a third thing has few. *Sharpness*: edges of the result
//! beside those of the two, so that a blur is not taken for a good mix. *Off the nearer*: the difference to the nearer of
//! the two, in ordinary steps from frame to frame of it: just inside the ends it has to be small, or the picture jumps
//! there. *Steps at the ends* of a bridge: the difference of its first and its last frame to the known one beside it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use clap::Parser;
use gst::prelude::*;
use gstdit::elements::loading::default_model;
use gstdit::pipeline::{
    EmbeddingCache, LatentMixer, MixControls, MixFrame, Pipeline, RgbFrame, bridge, video_of,
};
use gstdit::training::world::{Attributes, Background, Colour, Motion, Scene, Shape, Style};
use gstdit::training::{generate, sheet};
use tch::{Device, Kind, Tensor};

const FPS: i32 = 16;
const MIXES: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];
/// Measured too: just inside the ends.
const NEAR_ENDS: [f64; 6] = [0.01, 0.05, 0.1, 0.9, 0.95, 0.99];
/// Frames of a clip, of the bridge and on either side of it.
const FRAMES: usize = 17;
const GAP: usize = 12;
const SIDE: usize = 4;

#[derive(Parser)]
struct Args {
    /// Folder for the sheets.
    out: PathBuf,
    /// Folder of the model; the one that comes with the plugin if not given.
    #[arg(long)]
    model: Option<PathBuf>,
    #[arg(long, default_value = "red,circle,moving right,sea")]
    a: String,
    #[arg(long, default_value = "yellow,star,still,night")]
    b: String,
    /// What a file shows; scenes describe themselves.
    #[arg(long, default_value = "")]
    prompt_a: String,
    #[arg(long, default_value = "")]
    prompt_b: String,
    #[arg(long, default_value_t = 0.6)]
    creativity: f64,
    /// Denoising steps; the model's own number if not given.
    #[arg(long)]
    steps: Option<u32>,
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

type Frames = Vec<Arc<RgbFrame>>;

fn main() -> Result<()> {
    gst::init()?;
    let args = Args::parse();
    let _guard = tch::no_grad_guard();
    let folder = args.model.clone().map_or_else(default_model, Ok)?;
    let pipeline = generate::load(&folder, Device::Cpu)?;
    let native = &pipeline.info().native;
    let size = (native.width as usize, native.height as usize);
    let (a, prompt_a) = clip(&args.a, &args.prompt_a, size)?;
    let (b, prompt_b) = clip(&args.b, &args.prompt_b, size)?;
    println!("a: {prompt_a:?}\nb: {prompt_b:?}");
    std::fs::create_dir_all(&args.out)?;
    let controls = MixControls {
        prompts: [prompt_a, prompt_b],
        negative_prompt: String::new(),
        guidance_scale: None,
        seed: args.seed,
        num_inference_steps: args.steps.unwrap_or(native.num_inference_steps),
        creativity: args.creativity,
    };
    sweep(&pipeline, &a, &b, &controls, &args.out.join("sweep.png"))?;
    connect(&pipeline, &a, &b, &controls, &args.out.join("bridge.png"))
}

/// A scene or a file, and what it is said to show.
fn clip(source: &str, prompt: &str, size: (usize, usize)) -> Result<(Frames, String)> {
    if Path::new(source).is_file() {
        return Ok((read(Path::new(source), size)?, prompt.to_owned()));
    }
    let words: Vec<&str> = source.split(',').map(str::trim).collect();
    let [colour, shape, motion, background] = words[..] else {
        bail!("{source:?} is neither a file nor COLOUR,SHAPE,MOTION,BACKGROUND");
    };
    let attributes = Attributes {
        colour: Colour::from_name(colour).with_context(|| format!("colour {colour:?}"))?,
        shape: Shape::from_name(shape).with_context(|| format!("shape {shape:?}"))?,
        motion: Motion::from_name(motion).with_context(|| format!("motion {motion:?}"))?,
        background: Background::from_name(background)
            .with_context(|| format!("background {background:?}"))?,
        style: Style::None,
    };
    let (width, height) = size;
    let scene = Scene::with_attributes(attributes, 1);
    let pixels = scene.render(width, height, FRAMES, 0, f64::from(FPS));
    let frames = pixels
        .chunks(width * height * 3)
        .map(|data| Arc::new(RgbFrame { width, height, data: data.to_vec() }))
        .collect();
    Ok((frames, format!("a {colour} {shape} {motion} over the {background}")))
}

/// The first frames of a file, at the model's rate and size.
fn read(path: &Path, (width, height): (usize, usize)) -> Result<Frames> {
    let line = format!(
        "filesrc name=file ! decodebin ! videoconvert ! videoscale ! videorate \
         ! video/x-raw,format=RGB,width={width},height={height},framerate={FPS}/1 \
         ! fakesink name=sink signal-handoffs=true sync=false"
    );
    let pipeline =
        gst::parse::launch(&line)?.downcast::<gst::Pipeline>().ok().context("pipeline")?;
    pipeline.by_name("file").context("filesrc")?.set_property("location", path.to_str());
    let frames = Arc::new(Mutex::new(Frames::new()));
    let kept = frames.clone();
    let sink = pipeline.by_name("sink").context("sink")?;
    sink.connect("handoff", false, move |values| {
        let buffer = values[1].get::<gst::Buffer>().ok()?;
        let map = buffer.map_readable().ok()?;
        // GStreamer rounds RGB rows up to four bytes.
        let stride = (width * 3).next_multiple_of(4);
        let data = map.chunks(stride).flat_map(|row| &row[..width * 3]).copied().collect();
        kept.lock().ok()?.push(Arc::new(RgbFrame { width, height, data }));
        None
    });
    pipeline.set_state(gst::State::Playing)?;
    let bus = pipeline.bus().context("bus")?;
    let message = bus.timed_pop_filtered(
        gst::ClockTime::NONE,
        &[gst::MessageType::Eos, gst::MessageType::Error],
    );
    pipeline.set_state(gst::State::Null)?;
    if let Some(gst::MessageView::Error(error)) = message.as_ref().map(|message| message.view()) {
        bail!("{}: {}", path.display(), error.error());
    }
    let mut frames = std::mem::take(&mut *frames.lock().map_err(|_| anyhow::anyhow!("frames"))?);
    if frames.len() < FRAMES {
        bail!("{}: {} frames, at least {FRAMES} are needed", path.display(), frames.len());
    }
    frames.truncate(FRAMES);
    Ok(frames)
}

/// `[1, 3, F, H, W]` in [-1, 1].
fn video<'a>(frames: impl IntoIterator<Item = &'a RgbFrame>) -> Result<Tensor> {
    let frames: Vec<&RgbFrame> = frames.into_iter().collect();
    let first = frames.first().context("no frames")?;
    let size = (first.width as i64, first.height as i64);
    Ok(video_of(frames, size)?)
}

fn sweep(
    pipeline: &Pipeline,
    a: &Frames,
    b: &Frames,
    controls: &MixControls,
    path: &Path,
) -> Result<()> {
    let size = (a[0].width as i64, a[0].height as i64);
    let (of_a, of_b) = (video(a.iter().map(|it| &**it))?, video(b.iter().map(|it| &**it))?);
    let mut texts = EmbeddingCache::default();
    let (mut made, mut crossfaded) = (Vec::new(), Vec::new());
    println!("{:>5} {:>22} {:>22} {:>14}", "mix", "double edges", "sharpness", "off the nearer");
    let mut shares = [MIXES.as_slice(), NEAR_ENDS.as_slice()].concat();
    shares.sort_by(f64::total_cmp);
    for share in shares {
        let crossfade = of_a.shallow_clone() * (1.0 - share) + of_b.shallow_clone() * share;
        let mixed = if share == 0.0 || share == 1.0 {
            crossfade.shallow_clone()
        } else {
            let frames: Vec<MixFrame> = a
                .iter()
                .zip(b)
                .map(|(a, b)| MixFrame { a: a.clone(), b: b.clone(), share })
                .collect();
            let mut mixer = LatentMixer::new(pipeline, size)?;
            let mut out = Vec::new();
            // As the element does it: a frame, then chunk after chunk.
            let length = (pipeline.info().later_chunk_latent_frames().clamp(1, 4)
                * pipeline.info().vae.temporal_factor()) as usize;
            let (first, rest) = frames.split_at(1);
            let whole = rest.len() / length * length;
            let chunks = rest[..whole].chunks(length).chain(Some(&rest[whole..]));
            for chunk in std::iter::once(first).chain(chunks).filter(|chunk| !chunk.is_empty()) {
                let help: (&mut EmbeddingCache, &dyn Fn() -> bool) = (&mut texts, &|| false);
                out.extend(mixer.next_chunk(pipeline, chunk, controls, help)?.frames);
            }
            video(&out)?
        };
        let (ours, plain) = (measured(&mixed, &of_a, &of_b), measured(&crossfade, &of_a, &of_b));
        let nearer = if share < 0.5 { &of_a } else { &of_b };
        let off = (&mixed - nearer).abs().mean(Kind::Float).double_value(&[]) / ordinary(nearer);
        println!(
            "{share:>5} {:>10.3} (plain {:.3}) {:>10.3} (plain {:.3}) {off:>14.2}",
            ours.0, plain.0, ours.1, plain.1
        );
        if MIXES.contains(&share) {
            made.push(mixed);
            crossfaded.push(crossfade);
        }
    }
    sheet::write(path, &[&Tensor::cat(&made, 0), &Tensor::cat(&crossfaded, 0)], 6)?;
    println!("{}", path.display());
    Ok(())
}

fn connect(
    pipeline: &Pipeline,
    a: &Frames,
    b: &Frames,
    controls: &MixControls,
    path: &Path,
) -> Result<()> {
    let size = (a[0].width as i64, a[0].height as i64);
    let mut texts = EmbeddingCache::default();
    let help: (&mut EmbeddingCache, &dyn Fn() -> bool) = (&mut texts, &|| false);
    let gap = bridge(pipeline, (&a[a.len() - 5..], &b[..SIDE]), (GAP, size), controls, help)?;
    let (before, after) = (&a[a.len() - SIDE..], &b[..SIDE]);
    let shown = before.iter().map(|it| &**it).chain(&gap).chain(after.iter().map(|it| &**it));
    let bridged = video(shown)?;
    let last = video([&*a[a.len() - 1]])?;
    let first = video([&*b[0]])?;
    let fades: Vec<Tensor> = (1..=GAP)
        .map(|frame| {
            let share = frame as f64 / (GAP + 1) as f64;
            last.shallow_clone() * (1.0 - share) + first.shallow_clone() * share
        })
        .collect();
    let fades = Tensor::cat(&fades, 2);
    let middle = bridged.narrow(2, SIDE as i64, GAP as i64);
    let (ours, plain) = (measured(&middle, &last, &first), measured(&fades, &last, &first));
    println!(
        "bridge: double edges {:.3} (plain {:.3}), sharpness {:.3} (plain {:.3})",
        ours.0, plain.0, ours.1, plain.1
    );
    let (head, tail) = (SIDE as i64, (SIDE + GAP) as i64);
    let (of_a, of_b) = (video(a.iter().map(|it| &**it))?, video(b.iter().map(|it| &**it))?);
    println!(
        "bridge: steps at its ends {:.2} and {:.2} times those of the clips beside them, {:.2} and {:.2} times its own",
        step(&bridged, head) / ordinary(&of_a),
        step(&bridged, tail) / ordinary(&of_b),
        step(&bridged, head) / ordinary(&middle),
        step(&bridged, tail) / ordinary(&middle)
    );
    let plain = Tensor::cat(&[bridged.narrow(2, 0, head), fades, bridged.narrow(2, tail, head)], 2);
    sheet::write(path, &[&bridged, &plain], 10)?;
    println!("{}", path.display());
    Ok(())
}

/// Mean absolute difference of two neighbouring frames of a video `[1, 3, F, H, W]`, the second being `frame`.
fn step(video: &Tensor, frame: i64) -> f64 {
    let difference = video.narrow(2, frame, 1) - video.narrow(2, frame - 1, 1);
    difference.abs().mean(Kind::Float).double_value(&[])
}

/// The mean of all steps of a clip; at least a level of eight bits, where it stands still.
fn ordinary(clip: &Tensor) -> f64 {
    let frames = clip.size()[2];
    let steps: f64 = (1..frames).map(|frame| step(clip, frame)).sum();
    (steps / (frames - 1) as f64).max(2.0 / 255.0)
}

/// Double edges and sharpness of a video `[1, 3, F, H, W]` between two others, whose single frames count for all.
fn measured(mixed: &Tensor, a: &Tensor, b: &Tensor) -> (f64, f64) {
    let (x, a, b) = (edges(mixed), edges(a), edges(b));
    let (a, b) = (a.expand_as(&x), b.expand_as(&x));
    let sum = |t: Tensor| t.sum(Kind::Float).double_value(&[]);
    let kept = |own: &Tensor, other: &Tensor| {
        let only = (own - other).relu();
        sum(&x * &only) / sum(own * &only).max(1e-6)
    };
    let sharpness =
        2.0 * sum(x.shallow_clone()) / (sum(a.shallow_clone()) + sum(b.shallow_clone()));
    (kept(&a, &b).min(kept(&b, &a)), sharpness)
}

/// Length of the brightness gradient, `[1, F, H-1, W-1]`.
fn edges(video: &Tensor) -> Tensor {
    let grey = video.mean_dim([1i64].as_slice(), false, Kind::Float);
    let (height, width) = (grey.size()[2], grey.size()[3]);
    let corner = |y: i64, x: i64| grey.narrow(2, y, height - 1).narrow(3, x, width - 1);
    let (dy, dx) = (corner(1, 0) - corner(0, 0), corner(0, 1) - corner(0, 0));
    (dy.square() + dx.square()).sqrt()
}
