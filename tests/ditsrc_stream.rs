// SPDX-License-Identifier: MPL-2.0
//! `ditsrc` while it plays: caps, timestamps, the same bytes however it is played, queries, messages.

mod support;

use gst::prelude::*;
use support::{FIRST_CHUNK, LATER_CHUNK, Native, Rig, TINY, folder_with, init, pixels, played};

const RGB: &str = "video/x-raw,format=RGB,width=32,height=32";

struct Model {
    _parent: tempfile::TempDir,
    folder: std::path::PathBuf,
}

fn model() -> Model {
    let parent = tempfile::tempdir().unwrap();
    let folder = folder_with(parent.path(), "ti2v_public", TINY);
    Model { _parent: parent, folder }
}

#[test]
fn native_size_and_rate_are_preferred() {
    let _serial = init();
    let model = model();
    let rig = Rig::new(&model.folder, "num-buffers=1", "video/x-raw");
    assert!(rig.play(), "{:?}", rig.errors());
    let info = rig.caps();
    assert_eq!((info.width(), info.height()), (64, 32));
    assert_eq!(info.fps(), gst::Fraction::new(16, 1));
    assert_eq!(info.par(), gst::Fraction::new(1, 1));
    assert_eq!(info.format(), gst_video::VideoFormat::Rgb);
    assert_eq!(info.colorimetry().to_string(), "sRGB");
}

#[test]
fn a_fixed_height_keeps_the_native_shape() {
    let _serial = init();
    let model = model();
    let rig = Rig::new(&model.folder, "num-buffers=1", "video/x-raw,height=64");
    assert!(rig.play(), "{:?}", rig.errors());
    assert_eq!((rig.caps().width(), rig.caps().height()), (128, 64));
}

#[test]
fn every_format_and_odd_sizes_are_painted() {
    let _serial = init();
    let model = model();
    for (format, size) in [
        ("I420", (33, 35)),
        ("NV12", (63, 17)),
        ("YUY2", (17, 16)),
        ("BGRx", (31, 33)),
        ("ARGB", (16, 16)),
        ("Y444", (47, 19)),
    ] {
        let caps = format!("video/x-raw,format={format},width={},height={}", size.0, size.1);
        let rig = Rig::new(&model.folder, "num-buffers=2", &caps);
        assert!(rig.play(), "{format}: {:?}", rig.errors());
        let (info, frames) = (rig.caps(), rig.take_frames());
        assert_eq!(frames.len(), 2);
        assert!(frames.iter().all(|frame| frame.data.len() == info.size()), "{format}");
        if info.format_info().is_yuv() {
            assert_eq!(info.colorimetry().to_string(), "bt601", "{format}");
        }
    }
}

#[test]
fn downstream_colorimetry_and_pixel_aspect_ratio_are_honoured() {
    let _serial = init();
    let model = model();
    let caps =
        "video/x-raw,format=I420,width=32,height=32,colorimetry=bt709,pixel-aspect-ratio=2/1";
    let rig = Rig::new(&model.folder, "num-buffers=1", caps);
    assert!(rig.play(), "{:?}", rig.errors());
    assert_eq!(rig.caps().colorimetry().to_string(), "bt709");
    assert_eq!(rig.caps().par(), gst::Fraction::new(2, 1));
}

#[test]
fn timestamps_are_exact_at_broadcast_rates() {
    let _serial = init();
    let model = model();
    for (num, den) in [(24000u64, 1001u64), (25, 1), (30000, 1001), (60000, 1001)] {
        let caps = format!("{RGB},framerate={num}/{den}");
        let frames = played(&model.folder, "num-buffers=12", &caps);
        assert_eq!(frames.len(), 12);
        let time = |n: u64| n * den * 1_000_000_000 / num;
        for (n, frame) in (0..).zip(&frames) {
            assert_eq!((frame.pts, frame.pts + frame.duration), (time(n), time(n + 1)));
            assert_eq!((frame.offset, frame.discont), (n, n == 0));
        }
    }
}

#[test]
fn a_variable_rate_keeps_the_models_own_times() {
    let _serial = init();
    let model = model();
    let rig = Rig::new(&model.folder, "num-buffers=3", &format!("{RGB},framerate=0/1"));
    assert!(rig.play(), "{:?}", rig.errors());
    assert_eq!(rig.caps().fps(), gst::Fraction::new(0, 1));
    let times: Vec<u64> = rig.take_frames().iter().map(|frame| frame.pts).collect();
    assert_eq!(times, [0, 62_500_000, 125_000_000]);
}

#[test]
fn another_rate_repeats_or_leaves_out_frames() {
    let _serial = init();
    let model = model();
    let native = played(&model.folder, "num-buffers=5", &format!("{RGB},framerate=16/1"));
    let double = played(&model.folder, "num-buffers=6", &format!("{RGB},framerate=32/1"));
    let half = played(&model.folder, "num-buffers=3", &format!("{RGB},framerate=8/1"));
    let native = pixels(&native);
    let wanted = |numbers: &[usize]| numbers.iter().map(|n| native[*n]).collect::<Vec<_>>();
    assert_eq!(pixels(&double), wanted(&[0, 0, 1, 1, 2, 2]));
    assert_eq!(pixels(&half), wanted(&[0, 2, 4]));
}

#[test]
fn the_same_seed_gives_the_same_bytes_however_it_is_played() {
    let _serial = init();
    let model = model();
    let count = FIRST_CHUNK + 2 * LATER_CHUNK;
    let properties = format!("seed=7 num-buffers={count}");
    let plain = played(&model.folder, &properties, RGB);
    assert_eq!(plain.len(), count);
    assert_eq!(plain, played(&model.folder, &properties, RGB), "played twice");

    let other = played(&model.folder, &format!("seed=8 num-buffers={count}"), RGB);
    assert_ne!(pixels(&plain), pixels(&other), "another seed");

    let paused = Rig::new(&model.folder, &properties, RGB);
    paused.pipeline.set_state(gst::State::Paused).unwrap();
    paused.pipeline.state(support::PATIENCE).0.unwrap();
    paused.pipeline.set_state(gst::State::Playing).unwrap();
    paused.wait_frames(3);
    paused.pipeline.set_state(gst::State::Paused).unwrap();
    assert!(paused.play(), "{:?}", paused.errors());
    assert_eq!(plain, paused.take_frames(), "paused on the way");
}

#[test]
fn live_gives_the_same_bytes_on_the_clock() {
    let _serial = init();
    let model = model();
    let properties = format!("seed=7 num-buffers={FIRST_CHUNK}");
    let plain = played(&model.folder, &properties, RGB);
    let live = Rig::new(&model.folder, &format!("{properties} is-live=true"), RGB);
    let change = live.pipeline.set_state(gst::State::Paused).unwrap();
    assert_eq!(change, gst::StateChangeSuccess::NoPreroll);
    live.pipeline.set_state(gst::State::Playing).unwrap();
    live.wait_frames(2);
    live.pipeline.set_state(gst::State::Paused).unwrap();
    assert!(live.play(), "{:?}", live.errors());
    // A frame that waits for the clock when the pause comes is thrown away by the base class, which counts
    // it against num-buffers; it must come again, not be skipped.
    let frames = live.take_frames();
    assert!(frames.len() + 1 >= FIRST_CHUNK, "{}", frames.len());
    assert_eq!(pixels(&frames), pixels(&plain)[..frames.len()]);
    assert!((0..).zip(&frames).all(|(n, frame)| frame.offset == n));
    assert!(live.structures("dit-degraded").is_empty());
}

#[test]
fn a_seek_to_the_start_plays_the_same_again() {
    let _serial = init();
    let model = model();
    let rig = Rig::new(&model.folder, "seed=3", RGB);
    rig.pipeline.set_state(gst::State::Paused).unwrap();
    rig.pipeline.state(support::PATIENCE).0.unwrap();
    let count = (FIRST_CHUNK + LATER_CHUNK) as u64;
    let stop = gst::ClockTime::from_nseconds(62_500_000 * count);
    let seek = |from: gst::ClockTime| {
        rig.take_frames();
        let set = gst::SeekType::Set;
        rig.pipeline.seek(1.0, gst::SeekFlags::FLUSH, set, from, set, stop).unwrap();
        rig.pipeline.set_state(gst::State::Playing).unwrap();
        assert!(rig.finish(), "{:?}", rig.errors());
        rig.take_frames()
    };
    let first = seek(gst::ClockTime::ZERO);
    assert_eq!(first.len() as u64, count);
    assert!(first[0].discont && !first[1].discont);
    assert_eq!(first, seek(gst::ClockTime::ZERO));
    // Into the second chunk, generated from the start and skipped.
    let later = seek(gst::ClockTime::from_nseconds(62_500_000 * 6));
    assert_eq!(pixels(&later), pixels(&first[6..]));
    assert_eq!((later[0].pts, later[0].discont), (first[6].pts, true));
    assert_eq!(first, seek(gst::ClockTime::ZERO));
    let backwards = rig.src.seek(
        -1.0,
        gst::SeekFlags::FLUSH,
        gst::SeekType::Set,
        gst::ClockTime::ZERO,
        gst::SeekType::Set,
        stop,
    );
    assert!(backwards.is_err());
}

#[test]
fn a_still_is_one_picture_of_its_own() {
    let _serial = init();
    let model = model();
    let rig = Rig::new(&model.folder, "num-buffers=1", RGB);
    assert!(rig.play(), "{:?}", rig.errors());
    let stats = rig.src.property::<gst::Structure>("stats");
    assert_eq!(stats.get::<u64>("chunks"), Ok(1));
    assert_eq!(stats.get::<u64>("queue-level"), Ok(0));
    assert_eq!(rig.take_frames().len(), 1);
}

#[test]
fn a_changed_prompt_is_acknowledged_with_its_first_frame() {
    let _serial = init();
    let model = model();
    let rig = Rig::new(&model.folder, "prompt=one", RGB);
    rig.pipeline.set_state(gst::State::Playing).unwrap();
    rig.wait_frames(1);
    rig.src.set_property("prompt", "two");
    rig.src.set_property("seed", 9u64);
    let message = rig.wait_message(|message| {
        message
            .structure()
            .is_some_and(|it| it.name() == "dit-controls-applied" && it.get::<u64>("seed") == Ok(9))
    });
    rig.stop();
    let structure = message.structure().unwrap();
    assert_eq!(structure.get::<String>("prompt").unwrap(), "two");
    assert_eq!(structure.get::<f64>("guidance-scale").unwrap(), 1.0);
    let time = structure.get::<gst::ClockTime>("running-time").unwrap();
    let frame = time.nseconds() / 62_500_000;
    assert_eq!((frame - FIRST_CHUNK as u64) % LATER_CHUNK as u64, 0, "at a chunk boundary");
    let tags: Vec<String> = rig
        .messages()
        .iter()
        .filter_map(|message| match message.view() {
            gst::MessageView::Tag(tag) => {
                tag.tags().get::<gst::tags::Title>().map(|title| title.get().to_owned())
            }
            _ => None,
        })
        .collect();
    assert_eq!(tags.first().map(String::as_str), Some("one"));
}

#[test]
fn tags_say_how_it_was_made() {
    let _serial = init();
    let model = model();
    let rig = Rig::new(&model.folder, "prompt=\"a cat\" seed=5 num-buffers=1", RGB);
    assert!(rig.play(), "{:?}", rig.errors());
    let event = rig.src.static_pad("src").unwrap().sticky_event::<gst::event::Tag>(0).unwrap();
    let tags = event.tag();
    assert_eq!(tags.get::<gst::tags::Title>().unwrap().get(), "a cat");
    assert!(tags.get::<gst::tags::Encoder>().unwrap().get().starts_with("gst-plugin-dit "));
    let comment = tags.get::<gst::tags::Comment>().unwrap();
    assert_eq!(comment.get(), "seed=5 model=ti2v_public steps=2 guidance=1");
}

#[test]
fn tags_tell_of_another_guidance_at_the_beginning() {
    let _serial = init();
    let model = model();
    let path = model.folder.join("model_index.json");
    let mut index: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    index["_dit"]["initial_guidance_scale"] = 1.5.into();
    std::fs::write(&path, index.to_string()).unwrap();
    for (properties, guidance) in
        [("", "guidance=1 initial-guidance=1.5"), ("guidance-scale=1", "guidance=1")]
    {
        let rig = Rig::new(&model.folder, &format!("num-buffers=1 {properties}"), RGB);
        assert!(rig.play(), "{:?}", rig.errors());
        let event = rig.src.static_pad("src").unwrap().sticky_event::<gst::event::Tag>(0).unwrap();
        let comment = event.tag().get::<gst::tags::Comment>().unwrap().get().to_owned();
        assert!(comment.ends_with(&format!(" {guidance}")), "{comment}");
    }
}

#[test]
fn duration_and_conversions_are_answered() {
    let _serial = init();
    let model = model();
    let rig = Rig::new(&model.folder, "num-buffers=8", &format!("{RGB},framerate=16/1"));
    rig.pipeline.set_state(gst::State::Paused).unwrap();
    rig.pipeline.state(support::PATIENCE).0.unwrap();
    let src = &rig.src;
    assert_eq!(src.query_duration::<gst::ClockTime>(), Some(gst::ClockTime::from_mseconds(500)));
    assert_eq!(
        src.query_duration::<gst::format::Default>(),
        Some(gst::format::Default::from_u64(8))
    );
    let second = gst::ClockTime::SECOND;
    assert_eq!(
        src.query_convert::<Option<gst::format::Default>>(second),
        Some(Some(gst::format::Default::from_u64(16)))
    );
    assert_eq!(
        src.query_convert::<Option<gst::format::Bytes>>(second),
        Some(Some(gst::format::Bytes::from_u64(16 * 32 * 32 * 3)))
    );
    let frames = gst::format::Default::from_u64(8);
    assert_eq!(
        src.query_convert::<Option<gst::ClockTime>>(frames),
        Some(Some(gst::ClockTime::from_mseconds(500)))
    );
    rig.stop();
    let endless = Rig::new(&model.folder, "", RGB);
    endless.pipeline.set_state(gst::State::Paused).unwrap();
    endless.pipeline.state(support::PATIENCE).0.unwrap();
    assert_eq!(endless.src.query_duration::<gst::ClockTime>(), None);
}

#[test]
fn live_latency_is_one_frame_once_the_rate_is_known() {
    let _serial = init();
    let model = model();
    let caps = format!("{RGB},framerate=20/1");
    let rig = Rig::new(&model.folder, "num-buffers=2 is-live=true", &caps);
    let mut query = gst::query::Latency::new();
    rig.src.set_state(gst::State::Ready).unwrap();
    assert!(!rig.src.static_pad("src").unwrap().query(&mut query) || !query.result().0);
    assert!(rig.play(), "{:?}", rig.errors());
    let mut query = gst::query::Latency::new();
    assert!(rig.src.static_pad("src").unwrap().query(&mut query));
    assert_eq!(query.result(), (true, gst::ClockTime::from_mseconds(50), None));
    let waiting = Rig::new(&model.folder, "num-buffers=2", &caps);
    assert!(waiting.play());
    let mut query = gst::query::Latency::new();
    assert!(waiting.src.static_pad("src").unwrap().query(&mut query));
    assert!(!query.result().0);
}

#[test]
fn a_live_stream_that_is_too_slow_repeats_frames_and_says_so() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    // A chunk plays for some 8 ms and takes far longer than that.
    let native = Native { framerate: 500, steps: 40, ..TINY };
    let folder = folder_with(parent.path(), "ti2v_public", native);
    let rig = Rig::new(&folder, "is-live=true num-buffers=60", "video/x-raw,format=RGB");
    assert!(rig.play(), "{:?}", rig.errors());
    let frames = rig.take_frames();
    assert_eq!(frames.len(), 60);
    assert!(frames.windows(2).all(|pair| pair[0].pts + pair[0].duration == pair[1].pts));
    let told = rig.structures("dit-degraded");
    let actions: Vec<String> = told.iter().map(|it| it.get("action").unwrap()).collect();
    assert!(actions.iter().any(|action| action == "repeat-frame"), "{actions:?}");
    let stats = rig.src.property::<gst::Structure>("stats");
    assert!(stats.get::<u64>("repeated").unwrap() > 0, "{stats}");
    let is_qos = |message: &gst::Message| message.type_() == gst::MessageType::Qos;
    assert!(rig.messages().iter().any(is_qos));
}

#[test]
fn new_caps_on_the_way_are_followed() {
    let _serial = init();
    let model = model();
    let line = format!(
        "ditsrc name=src model-path={} device=cpu num-buffers=12 ! capsfilter name=caps caps=video/x-raw,format=RGB,width=32,height=32,framerate=16/1 ! fakesink name=sink signal-handoffs=true sync=false",
        model.folder.display()
    );
    let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
    let filter = pipeline.by_name("caps").unwrap();
    let sizes = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = sizes.clone();
    pipeline.by_name("sink").unwrap().connect("handoff", false, move |values| {
        let buffer = values[1].get::<gst::Buffer>().unwrap();
        let mut kept = kept.lock().unwrap();
        kept.push((buffer.size(), buffer.pts().unwrap().nseconds()));
        if kept.len() == 3 {
            let caps = "video/x-raw,format=I420,width=64,height=48,framerate=16/1";
            filter.set_property("caps", caps.parse::<gst::Caps>().unwrap());
        }
        None
    });
    pipeline.set_state(gst::State::Playing).unwrap();
    let bus = pipeline.bus().unwrap();
    let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
    let message = bus.timed_pop_filtered(support::PATIENCE, &kinds).unwrap();
    assert_eq!(message.type_(), gst::MessageType::Eos, "{message:?}");
    pipeline.set_state(gst::State::Null).unwrap();
    let sizes = sizes.lock().unwrap();
    assert_eq!(sizes.len(), 12);
    assert_eq!(sizes[0].0, 32 * 32 * 3);
    assert_eq!(sizes[11].0, 64 * 48 * 3 / 2);
    assert!((0..).zip(sizes.iter()).all(|(n, (_, pts))| *pts == n * 62_500_000));
}
