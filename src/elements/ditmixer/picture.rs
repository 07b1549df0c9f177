// SPDX-License-Identifier: MPL-2.0
//! Pictures in the output's format: inputs scaled and converted to it, and laid over each other.

use gst_video::prelude::*;

use crate::error::{Error, Result};

/// How an input whose shape differs from the output's is put into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[repr(C)]
#[enum_type(name = "GstDitSizing")]
pub enum DitSizing {
    #[default]
    #[enum_value(
        name = "Keep aspect ratio: black borders where the shapes differ",
        nick = "keep-aspect-ratio"
    )]
    KeepAspectRatio,
    #[enum_value(name = "Crop: what sticks out is cut off evenly", nick = "crop")]
    Crop,
    #[enum_value(name = "Stretch: the whole input on the whole output", nick = "stretch")]
    Stretch,
}

const BLACK: u32 = 0xff00_0000;

/// How frames get from an input to the output.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fit {
    pub sizing: DitSizing,
    /// What the application asks of the converter; sizes are ours to say.
    pub config: Option<gst_video::VideoConverterConfig>,
}

/// Brings the frames of one input to the output's format and size; the same frame again costs nothing.
#[derive(Default)]
pub struct Scaler {
    plan: Option<Plan>,
    /// The last input buffer and what became of it.
    last: Option<(gst::Buffer, gst::Buffer)>,
}

struct Plan {
    input: gst_video::VideoInfo,
    output: gst_video::VideoInfo,
    fit: Fit,
    /// None where input and output are alike.
    conversion: Option<(gst_video::VideoConverter, gst::BufferPool)>,
}

impl Drop for Plan {
    fn drop(&mut self) {
        if let Some((_, pool)) = &self.conversion
            && pool.set_active(false).is_err()
        {
            // Its buffers are freed with it in any case.
        }
    }
}

impl Scaler {
    /// A buffer of the output's kind with the picture of `buffer`; only its pixels mean anything.
    ///
    /// # Errors
    /// [`Error::Setting`] for buffers that do not hold what `input` says, or formats without a conversion.
    pub fn scaled(
        &mut self,
        buffer: &gst::Buffer,
        input: &gst_video::VideoInfo,
        output: &gst_video::VideoInfo,
        fit: &Fit,
    ) -> Result<gst::Buffer> {
        let fits = |plan: &Plan| plan.input == *input && plan.output == *output && plan.fit == *fit;
        if !self.plan.as_ref().is_some_and(fits) {
            self.last = None;
            self.plan = Some(Plan::new(input, output, fit)?);
        }
        if let Some((source, scaled)) = &self.last
            && source.as_ptr() == buffer.as_ptr()
        {
            return Ok(scaled.clone());
        }
        let plan = self.plan.as_ref().ok_or_else(|| unusable("no conversion"))?;
        let scaled = plan.convert(buffer)?;
        self.last = Some((buffer.clone(), scaled.clone()));
        Ok(scaled)
    }

    /// The last picture, if it was made for this output.
    pub fn last(&self, output: &gst_video::VideoInfo) -> Option<gst::Buffer> {
        self.plan.as_ref().filter(|plan| plan.output == *output)?;
        self.last.as_ref().map(|(_, scaled)| scaled.clone())
    }

    /// Lets go of all buffers.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

impl Plan {
    fn new(input: &gst_video::VideoInfo, output: &gst_video::VideoInfo, fit: &Fit) -> Result<Self> {
        let alike = input.format() == output.format()
            && (input.width(), input.height()) == (output.width(), output.height())
            && input.colorimetry() == output.colorimetry()
            && input.chroma_site() == output.chroma_site()
            && (input.par() == output.par() || fit.sizing == DitSizing::Stretch);
        let conversion = if alike { None } else { Some(conversion(input, output, fit)?) };
        Ok(Self { input: input.clone(), output: output.clone(), fit: fit.clone(), conversion })
    }

    fn convert(&self, buffer: &gst::Buffer) -> Result<gst::Buffer> {
        let source = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &self.input)
            .map_err(unusable)?;
        let Some((converter, pool)) = &self.conversion else { return Ok(buffer.clone()) };
        let mut scaled = pool.acquire_buffer(None).map_err(unusable)?;
        let writable = scaled.get_mut().ok_or_else(|| unusable("a shared buffer in the pool"))?;
        let mut target = gst_video::VideoFrameRef::from_buffer_ref_writable(writable, &self.output)
            .map_err(unusable)?;
        converter.frame_ref(&source, &mut target);
        drop(target);
        Ok(scaled)
    }
}

fn conversion(
    input: &gst_video::VideoInfo,
    output: &gst_video::VideoInfo,
    fit: &Fit,
) -> Result<(gst_video::VideoConverter, gst::BufferPool)> {
    // The converter wants equal rates; repeating and dropping frames is the aggregator's matter.
    let input = gst_video::VideoInfo::builder_from_info(input)
        .fps(output.fps())
        .build()
        .map_err(unusable)?;
    let config = converter_config(&input, output, fit);
    let converter =
        gst_video::VideoConverter::new(&input, output, Some(config)).map_err(unusable)?;
    let pool: gst::BufferPool = gst_video::VideoBufferPool::new().upcast();
    let caps = output.to_caps().map_err(unusable)?;
    let size = u32::try_from(output.size()).map_err(unusable)?;
    let mut pool_config = pool.config();
    pool_config.set_params(Some(&caps), size, 0, 0);
    pool.set_config(pool_config).map_err(unusable)?;
    pool.set_active(true).map_err(unusable)?;
    Ok((converter, pool))
}

fn converter_config(
    input: &gst_video::VideoInfo,
    output: &gst_video::VideoInfo,
    fit: &Fit,
) -> gst_video::VideoConverterConfig {
    let mut config = fit.config.clone().unwrap_or_else(|| {
        let mut config = gst_video::VideoConverterConfig::new();
        // The same bytes on every machine.
        config.set_threads(1);
        config.set_resampler_method(gst_video::VideoResamplerMethod::Linear);
        config
    });
    config.set_fill_border(true);
    config.set_border_argb(BLACK);
    match fit.sizing {
        DitSizing::Stretch => (),
        DitSizing::KeepAspectRatio => {
            let (width, height) = fitted(shape(input), shape(output), output);
            config.set_dest_x((output.width() as i32 - width) / 2);
            config.set_dest_y((output.height() as i32 - height) / 2);
            config.set_dest_width(Some(width));
            config.set_dest_height(Some(height));
        }
        DitSizing::Crop => {
            let (width, height) = fitted(shape(output), shape(input), input);
            config.set_src_x((input.width() as i32 - width) / 2);
            config.set_src_y((input.height() as i32 - height) / 2);
            config.set_src_width(Some(width));
            config.set_src_height(Some(height));
        }
    }
    config
}

/// Width and height in units that make pixels square.
fn shape(info: &gst_video::VideoInfo) -> (u128, u128) {
    let (num, den) = (info.par().numer().max(1) as u128, info.par().denom().max(1) as u128);
    (u128::from(info.width()) * num, u128::from(info.height()) * den)
}

/// Pixels that something of one shape takes up in a picture of another.
fn fitted(
    (width, height): (u128, u128),
    (into_width, into_height): (u128, u128),
    into: &gst_video::VideoInfo,
) -> (i32, i32) {
    let scaled = |whole: u32, part: u128, of: u128| {
        let pixels = (u128::from(whole) * part + of / 2) / of.max(1);
        (pixels as i32).clamp(1, whole as i32)
    };
    // Wider than the place it goes into: the full width.
    if width * into_height >= into_width * height {
        let pixels = scaled(into.height(), height * into_width, width * into_height);
        (into.width() as i32, pixels)
    } else {
        let pixels = scaled(into.width(), width * into_height, height * into_width);
        (pixels, into.height() as i32)
    }
}

/// Writes the picture of one buffer into another of the same kind, with the share `over` in [0, 1] of a
/// second picture laid over it.
///
/// # Errors
/// [`Error::Setting`] for a buffer that does not hold what `info` says.
pub fn compose(
    picture: &gst::BufferRef,
    over: Option<(&gst::BufferRef, f64)>,
    info: &gst_video::VideoInfo,
    target: &mut gst::BufferRef,
) -> Result<()> {
    let readable =
        |buffer| gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, info).map_err(unusable);
    let one = readable(picture)?;
    let other = match over {
        Some((buffer, share)) => Some((readable(buffer)?, weight(share))),
        None => None,
    };
    let mut target =
        gst_video::VideoFrameRef::from_buffer_ref_writable(target, info).map_err(unusable)?;
    for plane in 0..one.n_planes() {
        let second = match &other {
            Some((frame, weight)) => {
                let rows = Rows::of(frame, plane)?;
                Some((rows, *weight))
            }
            None => None,
        };
        let first = Rows::of(&one, plane)?;
        let stride = target.plane_stride()[plane as usize].unsigned_abs() as usize;
        let height = target.plane_height(plane) as usize;
        let rows = target.plane_data_mut(plane).map_err(unusable)?;
        for (number, row) in rows.chunks_mut(stride).take(height).enumerate() {
            let source = first.row(number);
            match &second {
                None => {
                    let length = source.len().min(row.len());
                    row[..length].copy_from_slice(&source[..length]);
                }
                Some((second, weight)) => blend(row, source, second.row(number), *weight),
            }
        }
    }
    Ok(())
}

/// Lays the share `over` in [0, 1] of a picture over what is in `target`.
///
/// # Errors
/// As [`compose`].
pub fn lay_over(
    picture: &gst::BufferRef,
    over: f64,
    info: &gst_video::VideoInfo,
    target: &mut gst::BufferRef,
) -> Result<()> {
    let weight = weight(over);
    let picture =
        gst_video::VideoFrameRef::from_buffer_ref_readable(picture, info).map_err(unusable)?;
    let mut target =
        gst_video::VideoFrameRef::from_buffer_ref_writable(target, info).map_err(unusable)?;
    for plane in 0..picture.n_planes() {
        let source = Rows::of(&picture, plane)?;
        let stride = target.plane_stride()[plane as usize].unsigned_abs() as usize;
        let height = target.plane_height(plane) as usize;
        let rows = target.plane_data_mut(plane).map_err(unusable)?;
        for (number, row) in rows.chunks_mut(stride).take(height).enumerate() {
            for (byte, over) in row.iter_mut().zip(source.row(number)) {
                *byte = between(*byte, *over, weight);
            }
        }
    }
    Ok(())
}

struct Rows<'a> {
    data: &'a [u8],
    stride: usize,
}

impl<'a> Rows<'a> {
    fn of(frame: &'a gst_video::VideoFrameRef<&gst::BufferRef>, plane: u32) -> Result<Self> {
        let stride = frame.plane_stride()[plane as usize].unsigned_abs() as usize;
        Ok(Self { data: frame.plane_data(plane).map_err(unusable)?, stride })
    }

    fn row(&self, number: usize) -> &'a [u8] {
        let start = (number * self.stride).min(self.data.len());
        &self.data[start..(start + self.stride).min(self.data.len())]
    }
}

/// Of 256.
fn weight(share: f64) -> u32 {
    (share.clamp(0.0, 1.0) * 256.0).round() as u32
}

fn blend(target: &mut [u8], one: &[u8], other: &[u8], weight: u32) {
    for ((target, one), other) in target.iter_mut().zip(one).zip(other) {
        *target = between(*one, *other, weight);
    }
}

fn between(one: u8, other: u8, weight: u32) -> u8 {
    ((u32::from(one) * (256 - weight) + u32::from(other) * weight + 128) >> 8) as u8
}

fn unusable(error: impl std::fmt::Display) -> Error {
    Error::setting("video frame", error, "a mappable buffer of the negotiated format and size")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CROP: Fit = Fit { sizing: DitSizing::Crop, config: None };

    fn info(format: gst_video::VideoFormat, width: u32, height: u32) -> gst_video::VideoInfo {
        gst::init().unwrap();
        gst_video::VideoInfo::builder(format, width, height).build().unwrap()
    }

    fn filled(info: &gst_video::VideoInfo, value: u8) -> gst::Buffer {
        gst::Buffer::from_slice(vec![value; info.size()])
    }

    #[test]
    fn shapes_fit_into_each_other() {
        let wide = info(gst_video::VideoFormat::Rgb, 320, 180);
        let square = info(gst_video::VideoFormat::Rgb, 100, 100);
        assert_eq!(fitted(shape(&wide), shape(&square), &square), (100, 56));
        assert_eq!(fitted(shape(&square), shape(&wide), &wide), (180, 180));
        let tall = gst_video::VideoInfo::builder(gst_video::VideoFormat::Rgb, 100, 100)
            .par(gst::Fraction::new(1, 2))
            .build()
            .unwrap();
        assert_eq!(fitted(shape(&tall), shape(&square), &square), (50, 100));
    }

    #[test]
    fn the_same_kind_of_frame_is_passed_untouched_and_a_repeated_one_converted_once() {
        let one = info(gst_video::VideoFormat::I420, 33, 17);
        let other = info(gst_video::VideoFormat::Rgb, 40, 20);
        let buffer = filled(&one, 77);
        let mut scaler = Scaler::default();
        let same = scaler.scaled(&buffer, &one, &one, &CROP).unwrap();
        assert_eq!(same.as_ptr(), buffer.as_ptr());
        let first = scaler.scaled(&buffer, &one, &other, &CROP).unwrap();
        let second = scaler.scaled(&buffer, &one, &other, &CROP).unwrap();
        assert_eq!(first.as_ptr(), second.as_ptr());
        assert!(scaler.last(&one).is_none() && scaler.last(&other).is_some());
    }

    #[test]
    fn borders_are_black_and_crops_have_none() {
        let white = info(gst_video::VideoFormat::Rgb, 64, 16);
        let square = info(gst_video::VideoFormat::Rgb, 32, 32);
        let buffer = filled(&white, 255);
        let middle_and_top = |sizing| {
            let scaled = Scaler::default()
                .scaled(&buffer, &white, &square, &Fit { sizing, config: None })
                .unwrap();
            let data = scaled.map_readable().unwrap();
            (data[96 * 16 + 48], data[48])
        };
        assert_eq!(middle_and_top(DitSizing::KeepAspectRatio), (255, 0));
        assert_eq!(middle_and_top(DitSizing::Crop), (255, 255));
        assert_eq!(middle_and_top(DitSizing::Stretch), (255, 255));
    }

    #[test]
    fn shares_are_laid_over_each_other_in_every_format() {
        for format in crate::frames::FORMATS {
            let info = info(format, 31, 17);
            let (one, other) = (filled(&info, 100), filled(&info, 200));
            let mut target = filled(&info, 0);
            let row = |target: &gst::Buffer| {
                let frame =
                    gst_video::VideoFrameRef::from_buffer_ref_readable(target, &info).unwrap();
                frame.plane_data(0).unwrap()[..31].to_vec()
            };
            compose(&one, None, &info, target.get_mut().unwrap()).unwrap();
            assert!(row(&target).iter().all(|&byte| byte == 100), "{format:?}");
            compose(&one, Some((&other, 0.25)), &info, target.get_mut().unwrap()).unwrap();
            assert!(row(&target).iter().all(|&byte| byte == 125), "{format:?}");
            compose(&one, Some((&other, 1.0)), &info, target.get_mut().unwrap()).unwrap();
            assert!(row(&target).iter().all(|&byte| byte == 200), "{format:?}");
        }
    }

    #[test]
    fn short_buffers_are_an_error() {
        let info = info(gst_video::VideoFormat::Rgb, 32, 32);
        let short = gst::Buffer::from_slice(vec![0u8; 10]);
        assert!(Scaler::default().scaled(&short, &info, &info, &CROP).is_err());
    }
}
