// SPDX-License-Identifier: MPL-2.0
//! The one place where the engine's pixels become GStreamer video frames, and the other way round.
//!
//! The engine makes and takes packed 8-bit RGB, sRGB, full range, progressive, square pixels. [`Painter`] writes such
//! a frame into a buffer of the negotiated format, size and colorimetry, [`Reader`] makes one from such a buffer, both
//! through `GstVideoConverter`, honouring the buffer's own strides and offsets. `frames/file.rs` decodes whole
//! files, for the trainer.

#[cfg(feature = "training")]
pub mod file;

use std::sync::Arc;

use gst_video::prelude::*;

use crate::error::{Error, Result};
use crate::pipeline::RgbFrame;

/// The formats that [`Painter`] writes, the cheapest and least lossy first.
pub const FORMATS: [gst_video::VideoFormat; 18] = [
    gst_video::VideoFormat::Rgb,
    gst_video::VideoFormat::Rgbx,
    gst_video::VideoFormat::Bgrx,
    gst_video::VideoFormat::Xrgb,
    gst_video::VideoFormat::Xbgr,
    gst_video::VideoFormat::Rgba,
    gst_video::VideoFormat::Bgra,
    gst_video::VideoFormat::Argb,
    gst_video::VideoFormat::Abgr,
    gst_video::VideoFormat::Bgr,
    gst_video::VideoFormat::I420,
    gst_video::VideoFormat::Nv12,
    gst_video::VideoFormat::Yv12,
    gst_video::VideoFormat::Nv21,
    gst_video::VideoFormat::Y42b,
    gst_video::VideoFormat::Y444,
    gst_video::VideoFormat::Yuy2,
    gst_video::VideoFormat::Uyvy,
];

/// Lets a buffer refer to a frame's pixels without copying them.
struct Pixels(Arc<RgbFrame>);

impl AsRef<[u8]> for Pixels {
    fn as_ref(&self) -> &[u8] {
        &self.0.data
    }
}

/// Writes RGB frames into buffers of one negotiated kind.
pub struct Painter {
    output: gst_video::VideoInfo,
    /// For the frame size seen last.
    converter: Option<(gst_video::VideoInfo, gst_video::VideoConverter)>,
}

impl Painter {
    /// A painter for buffers described by `output`.
    pub fn new(output: gst_video::VideoInfo) -> Self {
        Self { output, converter: None }
    }

    /// The kind of buffers it writes.
    pub fn output(&self) -> &gst_video::VideoInfo {
        &self.output
    }

    /// Writes a frame, scaled to the whole of the output where the sizes differ.
    ///
    /// # Errors
    /// [`Error::Setting`] when the buffer or the frame does not have the promised layout.
    pub fn paint(&mut self, frame: &Arc<RgbFrame>, buffer: &mut gst::BufferRef) -> Result<()> {
        if frame.data.len() != frame.width * frame.height * 3 {
            let size = format!("{}x{}", frame.width, frame.height);
            return Err(Error::setting(
                "frame",
                format!("{} bytes", frame.data.len()),
                format!("{size} RGB"),
            ));
        }
        let fits = |info: &gst_video::VideoInfo| {
            (info.width() as usize, info.height() as usize) == (frame.width, frame.height)
        };
        if !self.converter.as_ref().is_some_and(|(input, _)| fits(input)) {
            self.converter = Some(self.make_converter(frame)?);
        }
        let Some((input, converter)) = &self.converter else {
            return Err(unusable("no converter"));
        };
        let pixels = gst::Buffer::from_slice(Pixels(frame.clone()));
        let source =
            gst_video::VideoFrameRef::from_buffer_ref_readable(&pixels, input).map_err(unusable)?;
        let mut target = gst_video::VideoFrameRef::from_buffer_ref_writable(buffer, &self.output)
            .map_err(unusable)?;
        converter.frame_ref(&source, &mut target);
        Ok(())
    }

    fn make_converter(
        &self,
        frame: &RgbFrame,
    ) -> Result<(gst_video::VideoInfo, gst_video::VideoConverter)> {
        let input = packed_rgb(frame.width, frame.height, self.output.fps())?;
        let converter = converter(&input, &self.output)?;
        Ok((input, converter))
    }
}

/// Reads buffers of one negotiated kind as RGB frames of one size.
pub struct Reader {
    input: gst_video::VideoInfo,
    output: gst_video::VideoInfo,
    converter: gst_video::VideoConverter,
}

impl Reader {
    /// A reader of buffers described by `input`, scaled to `width` x `height` pixels.
    ///
    /// # Errors
    /// [`Error::Setting`] where no conversion is possible.
    pub fn new(input: gst_video::VideoInfo, (width, height): (usize, usize)) -> Result<Self> {
        let output = packed_rgb(width, height, input.fps())?;
        let converter = converter(&input, &output)?;
        Ok(Self { input, output, converter })
    }

    /// Width and height of the frames it makes.
    pub fn size(&self) -> (usize, usize) {
        (self.output.width() as usize, self.output.height() as usize)
    }

    /// The picture in a buffer.
    ///
    /// # Errors
    /// [`Error::Setting`] when the buffer does not have the promised layout.
    pub fn read(&self, buffer: &gst::BufferRef) -> Result<RgbFrame> {
        let (width, height) = self.size();
        let source = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &self.input)
            .map_err(unusable)?;
        let mut pixels = gst::Buffer::with_size(width * height * 3).map_err(unusable)?;
        {
            let pixels = pixels.get_mut().ok_or_else(|| unusable("a shared buffer"))?;
            let mut target =
                gst_video::VideoFrameRef::from_buffer_ref_writable(pixels, &self.output)
                    .map_err(unusable)?;
            self.converter.frame_ref(&source, &mut target);
        }
        let data = pixels.map_readable().map_err(unusable)?.to_vec();
        Ok(RgbFrame { width, height, data })
    }
}

/// Rows of RGB without padding.
fn packed_rgb(width: usize, height: usize, fps: gst::Fraction) -> Result<gst_video::VideoInfo> {
    gst_video::VideoInfo::builder(gst_video::VideoFormat::Rgb, width as u32, height as u32)
        .stride(&[width as i32 * 3])
        .offset(&[0])
        .size(width * height * 3)
        .fps(fps)
        .build()
        .map_err(unusable)
}

fn converter(
    input: &gst_video::VideoInfo,
    output: &gst_video::VideoInfo,
) -> Result<gst_video::VideoConverter> {
    let mut config = gst_video::VideoConverterConfig::new();
    // The same bytes on every machine matter more than a share of a core.
    config.set_threads(1);
    gst_video::VideoConverter::new(input, output, Some(config)).map_err(unusable)
}

/// Refuses video whose pixels [`Reader`] would misunderstand.
///
/// # Errors
/// [`Error::Setting`] for interlaced and for high dynamic range video, with what to put in front.
pub fn check_readable(info: &gst_video::VideoInfo) -> Result<()> {
    if info.is_interlaced() {
        let mode = info.interlace_mode().to_str();
        let expected = "progressive video; put deinterlace in front";
        return Err(Error::setting("interlace-mode", mode, expected));
    }
    let transfer = info.colorimetry().transfer();
    if matches!(
        transfer,
        gst_video::VideoTransferFunction::Smpte2084 | gst_video::VideoTransferFunction::AribStdB67
    ) {
        let found = format!("{} (high dynamic range)", info.colorimetry());
        let expected = "standard dynamic range; convert it first, to bt709 for example";
        return Err(Error::setting("colorimetry", found, expected));
    }
    Ok(())
}

/// Gives a buffer the times, flags and metas of another, apart from those that describe its memory.
pub fn copy_metadata(from: &gst::BufferRef, to: &mut gst::BufferRef) {
    let copied = gst::BufferCopyFlags::FLAGS | gst::BufferCopyFlags::TIMESTAMPS;
    // It copies neither memory nor metas, and cannot fail for a whole buffer.
    let _ = from.copy_into(to, copied, ..);
    from.foreach_meta(|meta| {
        let of_memory =
            meta.tags().iter().any(|tag| matches!(tag.as_str(), "memory" | "memory-reference"));
        if !of_memory {
            // A meta that cannot be copied stays behind.
            let _ = meta.transform(to, &gst::meta::MetaTransformCopy::new(..));
        }
        std::ops::ControlFlow::Continue(())
    });
}

fn unusable(error: impl std::fmt::Display) -> Error {
    Error::setting("video frame", error, "a mappable buffer of the negotiated format and size")
}

/// The width that a picture of `width` pixels of an aspect ratio other than square has in square pixels.
pub fn square_width(info: &gst_video::VideoInfo) -> i64 {
    let width = i64::from(info.width());
    let (num, den) = (i64::from(info.par().numer()), i64::from(info.par().denom()));
    if num <= 0 || den <= 0 { width } else { ((width * num + den / 2) / den).clamp(16, 1 << 15) }
}

/// Caps of everything that [`Painter`] can write.
pub fn output_caps(least: i32, greatest: i32) -> gst::Caps {
    any_caps(least, greatest)
        .field("interlace-mode", gst_video::VideoInterlaceMode::Progressive.to_str())
        .build()
}

/// Caps of everything that [`Reader`] can read or [`check_readable`] has a clear word about.
pub fn input_caps(least: i32, greatest: i32) -> gst::Caps {
    any_caps(least, greatest).build()
}

fn any_caps(least: i32, greatest: i32) -> gst_video::VideoCapsBuilder<gst::caps::NoFeature> {
    let any_rate = gst::Fraction::new(0, 1)..=gst::Fraction::new(i32::MAX, 1);
    gst_video::VideoCapsBuilder::new()
        .format_list(FORMATS)
        .width_range(least..=greatest)
        .height_range(least..=greatest)
        .framerate_range(any_rate)
}

/// Settles on a pool of video buffers, downstream's own where it offers one.
///
/// # Errors
/// When the query holds no usable caps or the pool refuses its configuration.
pub fn decide_pool(query: &mut gst::query::Allocation) -> Result<()> {
    let caps = query.get().0.map(|caps| caps.to_owned());
    let caps = caps.ok_or_else(|| unusable("no caps in the allocation query"))?;
    let info = gst_video::VideoInfo::from_caps(&caps).map_err(unusable)?;
    let size = u32::try_from(info.size()).map_err(unusable)?;
    let offered = query.allocation_pools().next();
    let listed = offered.is_some();
    let (pool, size, min, max) = match offered {
        Some((pool, offered, min, max)) => (pool, offered.max(size), min, max),
        None => (None, size, 0, 0),
    };
    let pool = pool.unwrap_or_else(|| gst_video::VideoBufferPool::new().upcast());
    let mut config = pool.config();
    config.set_params(Some(&caps), size, min, max);
    if query.find_allocation_meta::<gst_video::VideoMeta>().is_some() {
        config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META);
    }
    pool.set_config(config).map_err(unusable)?;
    if listed {
        query.set_nth_allocation_pool(0, Some(&pool), size, min, max);
    } else {
        query.add_allocation_pool(Some(&pool), size, min, max);
    }
    Ok(())
}

/// Converts between time, frames and bytes; `rate` stands in where the caps have a variable rate.
pub fn convert(
    info: &gst_video::VideoInfo,
    rate: gst::Fraction,
    value: gst::GenericFormattedValue,
    target: gst::Format,
) -> Option<gst::GenericFormattedValue> {
    let info = gst_video::VideoInfo::builder_from_info(info).fps(rate).build().ok()?;
    info.convert_generic(value, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn painted(format: gst_video::VideoFormat, width: u32, height: u32) -> Vec<u8> {
        gst::init().unwrap();
        let red = [255u8, 0, 0].repeat(17 * 19);
        let frame = Arc::new(RgbFrame { width: 17, height: 19, data: red });
        let info = gst_video::VideoInfo::builder(format, width, height).build().unwrap();
        let mut buffer = gst::Buffer::with_size(info.size()).unwrap();
        Painter::new(info).paint(&frame, buffer.get_mut().unwrap()).unwrap();
        buffer.map_readable().unwrap().to_vec()
    }

    #[test]
    fn rgb_keeps_every_value_and_the_padding_of_rows() {
        let data = painted(gst_video::VideoFormat::Rgb, 17, 19);
        // GStreamer rounds RGB rows up to four bytes: 17 * 3 = 51 -> 52.
        for row in data.chunks(52) {
            assert!(row[..51].chunks(3).all(|pixel| pixel == [255, 0, 0]));
        }
    }

    #[test]
    fn odd_sizes_and_scaling_reach_every_corner() {
        let data = painted(gst_video::VideoFormat::Rgba, 33, 21);
        assert_eq!(data.len(), 33 * 21 * 4);
        assert!(data.chunks(4).all(|pixel| pixel == [255, 0, 0, 255]));
    }

    #[test]
    fn yuv_uses_the_matrix_of_the_size() {
        // Red in BT.601 is Y 82 (rounded), in BT.709 it is Y 63.
        let small = painted(gst_video::VideoFormat::Y444, 32, 32);
        let large = painted(gst_video::VideoFormat::Y444, 1280, 720);
        assert!((81..=83).contains(&small[0]), "{}", small[0]);
        assert!((62..=64).contains(&large[0]), "{}", large[0]);
    }

    #[test]
    fn what_was_painted_is_read() {
        gst::init().unwrap();
        let gradient = |i: u32| (i % 3 * 60 + i / 51 * 3) as u8;
        let frame = RgbFrame { width: 17, height: 19, data: (0..969).map(gradient).collect() };
        let frame = Arc::new(frame);
        // RGB is exact; eight bits of luma and chroma round to steps of 1.2 and 2.0, twice.
        for (format, bar) in [(gst_video::VideoFormat::Rgb, 0), (gst_video::VideoFormat::Y444, 4)] {
            let info = gst_video::VideoInfo::builder(format, 17, 19).build().unwrap();
            let mut buffer = gst::Buffer::with_size(info.size()).unwrap();
            Painter::new(info.clone()).paint(&frame, buffer.get_mut().unwrap()).unwrap();
            let read = Reader::new(info, (17, 19)).unwrap().read(&buffer).unwrap();
            let worst = frame.data.iter().zip(&read.data).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst <= Some(bar), "{format:?}: {worst:?}");
        }
    }

    #[test]
    fn interlaced_and_hdr_video_is_refused_with_a_way_out() {
        gst::init().unwrap();
        let refused = |caps: &str| {
            let caps = format!("video/x-raw,format=I420,width=64,height=32,framerate=25/1,{caps}");
            let caps: gst::Caps = caps.parse().unwrap();
            check_readable(&gst_video::VideoInfo::from_caps(&caps).unwrap())
        };
        let interlaced = refused("interlace-mode=interleaved").unwrap_err().to_string();
        assert!(interlaced.contains("deinterlace"), "{interlaced}");
        let hdr = refused("colorimetry=bt2100-pq").unwrap_err().to_string();
        assert!(hdr.contains("dynamic range"), "{hdr}");
        assert!(refused("colorimetry=bt709").is_ok());
    }

    #[test]
    fn every_format_is_painted() {
        for format in FORMATS {
            assert!(!painted(format, 31, 17).is_empty(), "{format:?}");
        }
    }
}
