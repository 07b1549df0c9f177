// SPDX-License-Identifier: MPL-2.0
//! Frames out of any file that GStreamer can decode, for those who have no pipeline of their own.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use gst::prelude::*;
use gst_video::prelude::*;

use crate::pipeline::RgbFrame;

/// How long a file may take to begin, and from one frame to the next.
const PATIENCE: gst::ClockTime = gst::ClockTime::from_seconds(60);
/// How often a wait looks whether there has been an error.
const LOOK: gst::ClockTime = gst::ClockTime::from_mseconds(50);

/// What a file shows before it is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Probe {
    /// Pixels as shown, that is with square pixels.
    pub width: f64,
    pub height: f64,
    /// A single picture.
    pub still: bool,
}

/// A pipeline from a file to RGB buffers; stopped when dropped.
struct Decoder {
    pipeline: gst::Pipeline,
    sink: gst::Element,
}

impl Decoder {
    /// Decodes `path` to frames of these caps.
    fn open(path: &Path, caps: &gst::Caps) -> Result<Self> {
        let line = "filesrc name=file ! decodebin caps=video/x-raw(ANY) expose-all-streams=false \
            ! videoconvert ! videoscale name=scale method=lanczos add-borders=false ! videorate \
            ! capsfilter name=caps ! appsink name=sink sync=false max-buffers=8";
        let pipeline = gst::parse::launch(line)
            .context("GStreamer's base plugins are needed to read clips")?
            .downcast::<gst::Pipeline>()
            .map_err(|_| anyhow!("not a pipeline"))?;
        let element = |name: &str| pipeline.by_name(name).context("element of the reader");
        element("file")?.set_property("location", path.to_str().context("the path is not UTF-8")?);
        element("caps")?.set_property("caps", caps);
        let decoder = Self { sink: element("sink")?, pipeline };
        // A failure to start is told on the bus as well, in more words.
        let _ = decoder.pipeline.set_state(gst::State::Playing);
        Ok(decoder)
    }

    /// The next frame; `None` after the last.
    fn next(&self) -> Result<Option<gst::Sample>> {
        let mut waited = gst::ClockTime::ZERO;
        loop {
            let sample = self
                .sink
                .emit_by_name::<Option<gst::Sample>>("try-pull-sample", &[&LOOK.nseconds()]);
            if sample.is_some() {
                return Ok(sample);
            }
            self.check()?;
            if self.sink.property::<bool>("eos") {
                return Ok(None);
            }
            waited += LOOK;
            if waited > PATIENCE {
                bail!("no frame came within {PATIENCE}");
            }
        }
    }

    /// The error on the bus, if there is one.
    fn check(&self) -> Result<()> {
        let bus = self.pipeline.bus().context("a pipeline has a bus")?;
        match bus.pop_filtered(&[gst::MessageType::Error]).as_ref().map(|m| m.view()) {
            Some(gst::MessageView::Error(error)) => Err(anyhow!("{}", error.error())),
            _ => Ok(()),
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

fn info(sample: &gst::Sample) -> Result<gst_video::VideoInfo> {
    let caps = sample.caps().context("a frame without caps")?;
    Ok(gst_video::VideoInfo::from_caps(caps)?)
}

/// Starts GStreamer, which has to come before [`probe`] and [`read`].
///
/// # Errors
/// What GStreamer says when it cannot start.
pub fn init() -> Result<()> {
    gst::init().context("GStreamer")
}

/// Looks at the first frame of a file.
///
/// # Errors
/// What GStreamer says about a file that it cannot decode, or that holds no picture.
pub fn probe(path: &Path) -> Result<Probe> {
    let caps = gst::Caps::builder("video/x-raw").field("format", "RGB").build();
    let decoder = Decoder::open(path, &caps)?;
    let sample = decoder.next()?.context("there is no picture in it")?;
    let info = info(&sample)?;
    let (numerator, denominator) = (info.par().numer(), info.par().denom());
    Ok(Probe {
        width: f64::from(info.width()) * f64::from(numerator) / f64::from(denominator.max(1)),
        height: f64::from(info.height()),
        still: info.fps().numer() == 0 && decoder.next()?.is_none(),
    })
}

/// At most `longest` frames of a file, each `width` x `height` pixels: scaled to cover that size, cut from the middle, at a
/// frame rate (which a still picture does not have).
///
/// # Errors
/// As [`probe`].
pub fn read(
    path: &Path,
    probe: &Probe,
    (width, height): (usize, usize),
    (frames, seconds): (i32, i32),
    longest: usize,
) -> Result<Vec<RgbFrame>> {
    let scale = (width as f64 / probe.width).max(height as f64 / probe.height);
    let cover = |side: f64, least: usize| ((side * scale).round() as usize).max(least) as i32;
    let mut caps = gst::Caps::builder("video/x-raw")
        .field("format", "RGB")
        .field("pixel-aspect-ratio", gst::Fraction::new(1, 1))
        .field("width", cover(probe.width, width))
        .field("height", cover(probe.height, height));
    if !probe.still {
        caps = caps.field("framerate", gst::Fraction::new(frames, seconds));
    }
    let decoder = Decoder::open(path, &caps.build())?;
    let mut video = Vec::new();
    while video.len() < longest
        && let Some(sample) = decoder.next()?
    {
        video.push(middle(&sample, (width, height))?);
    }
    if video.is_empty() {
        bail!("there is no picture in it");
    }
    Ok(video)
}

/// The middle of an RGB sample that is at least as large.
fn middle(sample: &gst::Sample, (width, height): (usize, usize)) -> Result<RgbFrame> {
    let info = info(sample)?;
    let buffer = sample.buffer().context("a frame without pixels")?;
    let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info)?;
    let left = (info.width() as usize).saturating_sub(width) / 2;
    let top = (info.height() as usize).saturating_sub(height) / 2;
    let (rows, stride) = (frame.plane_data(0)?, frame.plane_stride()[0] as usize);
    let mut data = Vec::with_capacity(width * height * 3);
    for row in rows.chunks(stride).skip(top).take(height) {
        let end = (left + width) * 3;
        data.extend_from_slice(row.get(left * 3..end).context("a frame smaller than asked for")?);
    }
    Ok(RgbFrame { width, height, data })
}
