// SPDX-License-Identifier: MPL-2.0
//! `ditfilter` in pipelines that are not live: every frame comes out, in its place, restyled as was asked.

#[path = "support/filter.rs"]
mod filter;
mod support;

use filter::{Arrival, CAPS, EIGHT, FRAME, Rig, buffer, model, picture, restyled};
use gst::prelude::*;
use gst_controller::prelude::*;
use support::{init, pixels};

#[test]
fn every_number_of_frames_comes_out() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 2);
    // Chunks of five, then of eight frames; of one, then of fours, three at once.
    for properties in [EIGHT, "threads=1 stream-batch=3 strength=0.5 still-threshold=0"] {
        for count in [0, 1, 2, 4, 5, 6, 7, 12, 13, 14, 22] {
            let frames = restyled(&model, properties, count);
            let times: Vec<_> = frames.iter().map(|it| (it.pts, it.duration, it.offset)).collect();
            let expected: Vec<_> = (0..count).map(|n| (n * FRAME, FRAME, n)).collect();
            assert_eq!(times, expected, "{count} frames");
            for (number, frame) in frames.iter().enumerate() {
                assert_ne!(frame.data, picture(number as u64), "frame {number} of {count}");
            }
        }
    }
}

#[test]
fn chunks_on_their_way_come_out_where_the_stream_is_cut() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 3);
    let batch = "threads=1 stream-batch=3 strength=1 still-threshold=0";
    // Bypassed behind 10 frames, then on again: nothing waits for a chunk that does not come, and nothing is lost.
    let rig = Rig::new(&model, batch, CAPS);
    rig.start();
    let filter = rig.filter.clone();
    rig.filter.static_pad("sink").unwrap().add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let number = info.buffer().unwrap().offset();
        filter.set_property("bypass", (10..20).contains(&number));
        gst::PadProbeReturn::Ok
    });
    rig.push_numbers(0..30);
    rig.end();
    rig.outcome().unwrap();
    let came: Vec<u64> = rig.buffers().iter().map(|it| it.offset()).collect();
    assert_eq!(came, (0..30).collect::<Vec<_>>());
    assert_eq!((rig.stat("restyled"), rig.stat("bypassed"), rig.stat("errors")), (20, 10, 0));
    let once = restyled(&model, batch, 14);
    assert_eq!(pixels(&once), pixels(&restyled(&model, batch, 14)));
}

#[test]
fn the_same_input_and_seed_give_the_same_bytes() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 2);
    let first = restyled(&model, EIGHT, 14);
    assert_eq!(pixels(&first), pixels(&restyled(&model, EIGHT, 14)));
    let other = restyled(&model, &format!("{EIGHT} seed=7"), 14);
    assert_ne!(pixels(&first), pixels(&other));
    let level = restyled(&model, &format!("{EIGHT} noise-level=0.2"), 14);
    assert_ne!(pixels(&first), pixels(&level));
}

#[test]
fn timestamps_stay_exact_at_broadcast_rates() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 2);
    for rate in ["24000/1001", "25/1", "30000/1001", "60000/1001", "0/1"] {
        let source = if rate == "0/1" { "25/1" } else { rate };
        let rig = Rig::launch(&format!(
            "videotestsrc num-buffers=11 ! video/x-raw,format=I420,width=64,height=32,framerate={source} \
             ! capssetter caps=\"video/x-raw,framerate={rate}\" ! identity name=before \
             ! ditfilter name=filter model-path={} device=cpu {EIGHT} ! fakesink name=sink sync=false",
            model.display()
        ));
        let (sender, sent) = std::sync::mpsc::channel();
        let before = rig.pipeline.by_name("before").unwrap().static_pad("sink").unwrap();
        before.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            let buffer = info.buffer().unwrap();
            sender.send((buffer.pts(), buffer.duration())).unwrap();
            gst::PadProbeReturn::Ok
        });
        rig.start();
        rig.outcome().unwrap();
        let sent: Vec<_> = sent.try_iter().collect();
        let came: Vec<_> = rig.buffers().iter().map(|it| (it.pts(), it.duration())).collect();
        assert_eq!((sent.len(), &came), (11, &sent), "{rate}");
    }
}

#[test]
fn every_format_and_odd_sizes_keep_their_caps() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 1);
    let sizes = [(64, 32), (33, 17), (16, 40)];
    for (index, format) in gstdit::frames::FORMATS.iter().enumerate() {
        let (width, height) = sizes[index % sizes.len()];
        let caps = format!(
            "video/x-raw,format={},width={width},height={height},framerate=25/1",
            format.to_str()
        );
        let rig = Rig::launch(&format!(
            "videotestsrc num-buffers=2 ! {caps} \
             ! ditfilter name=filter model-path={} device=cpu {EIGHT} ! {caps} ! fakesink name=sink sync=false",
            model.display()
        ));
        rig.start();
        rig.outcome().unwrap();
        assert_eq!(rig.buffers().len(), 2, "{caps}");
        assert_eq!(rig.stat("restyled"), 2, "{caps}");
    }
}

#[test]
fn flags_and_metas_survive() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 1);
    let rig = Rig::new(&model, EIGHT, CAPS);
    rig.start();
    let reference: gst::Caps = "timestamp/x-test".parse().unwrap();
    for number in 0..3 {
        let mut buffer = buffer(number);
        let writable = buffer.get_mut().unwrap();
        writable.set_flags(gst::BufferFlags::MARKER);
        let time = gst::ClockTime::from_seconds(number + 100);
        gst::ReferenceTimestampMeta::add(writable, &reference, time, None);
        gst_video::VideoRegionOfInterestMeta::add(writable, "face", (1, 2, 3, 4));
        assert_eq!(rig.push(buffer), gst::FlowReturn::Ok);
    }
    rig.end();
    rig.outcome().unwrap();
    for (number, buffer) in rig.buffers().iter().enumerate() {
        assert!(buffer.flags().contains(gst::BufferFlags::MARKER));
        let meta = buffer.meta::<gst::ReferenceTimestampMeta>().unwrap();
        assert_eq!(meta.timestamp(), gst::ClockTime::from_seconds(number as u64 + 100));
        let region = buffer.meta::<gst_video::VideoRegionOfInterestMeta>().unwrap();
        assert_eq!(region.rect(), (1, 2, 3, 4));
        assert_eq!(
            buffer.iter_meta::<gst_video::VideoMeta>().count().min(1),
            buffer.iter_meta::<gst_video::VideoMeta>().count()
        );
    }
}

#[test]
fn new_caps_come_behind_the_frames_of_the_old() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 1);
    let rig = Rig::new(&model, EIGHT, CAPS);
    rig.start();
    rig.push_numbers(0..7);
    let other = "video/x-raw,format=RGB,width=32,height=64,framerate=50/1";
    rig.source.set_property("caps", other.parse::<gst::Caps>().unwrap());
    rig.push_numbers(7..10);
    rig.end();
    rig.outcome().unwrap();
    let mut seen = Vec::new();
    let mut width = 0;
    for arrival in rig.arrivals() {
        match arrival {
            Arrival::Event(event) => {
                if let gst::EventView::Caps(caps) = event.view() {
                    width = caps.caps().structure(0).unwrap().get::<i32>("width").unwrap();
                }
            }
            Arrival::Buffer(_) => seen.push(width),
        }
    }
    assert_eq!(seen, [64, 64, 64, 64, 64, 64, 64, 32, 32, 32]);
    assert_eq!(rig.stat("restyled"), 10);
}

#[test]
fn nothing_is_changed_where_nothing_is_asked() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 1);
    for properties in ["bypass=true", "strength=0", "noise-level=0"] {
        for (number, frame) in restyled(&model, properties, 6).iter().enumerate() {
            assert_eq!(frame.data, picture(number as u64), "{properties}");
        }
    }
}

#[test]
fn bypass_switches_at_a_frame() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 1);
    let rig = Rig::new(&model, EIGHT, CAPS);
    rig.start();
    // The property is read when a frame comes in.
    let filter = rig.filter.clone();
    rig.filter.static_pad("sink").unwrap().add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let number = info.buffer().unwrap().offset();
        filter.set_property("bypass", (3..7).contains(&number));
        gst::PadProbeReturn::Ok
    });
    rig.push_numbers(0..16);
    rig.end();
    rig.outcome().unwrap();
    let changed: Vec<bool> = rig
        .frames()
        .iter()
        .enumerate()
        .map(|(number, frame)| frame.data != picture(number as u64))
        .collect();
    let expected: Vec<bool> = (0..16).map(|number| !(3..7).contains(&number)).collect();
    assert_eq!(changed, expected);
}

#[test]
fn a_changed_prompt_is_acknowledged_with_its_first_frame() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 1);
    let run = |transition: &str| {
        let rig = Rig::new(&model, &format!("{EIGHT} {transition}"), CAPS);
        rig.start();
        let filter = rig.filter.clone();
        rig.filter.static_pad("sink").unwrap().add_probe(
            gst::PadProbeType::BUFFER,
            move |_, info| {
                if info.buffer().unwrap().offset() == 7 {
                    filter.set_property("prompt", "the sea");
                }
                gst::PadProbeReturn::Ok
            },
        );
        rig.push_numbers(0..29);
        rig.end();
        rig.outcome().unwrap();
        let applied = rig.structures("dit-controls-applied");
        assert_eq!(applied.len(), 1);
        assert_eq!(applied[0].get::<&str>("prompt"), Ok("the sea"));
        // Chunks begin at frames 0, 5, 13 and 21.
        let timestamp = applied[0].get::<gst::ClockTime>("timestamp").unwrap();
        assert_eq!(timestamp.nseconds(), 13 * FRAME);
        rig.frames()
    };
    let before = restyled(&model, EIGHT, 29);
    let (at_once, slowly) = (run(""), run("style-transition=400000000"));
    assert_eq!(pixels(&before)[..13], pixels(&at_once)[..13]);
    assert_ne!(pixels(&before)[13..21], pixels(&at_once)[13..21]);
    assert_eq!(pixels(&before)[..13], pixels(&slowly)[..13]);
    assert_ne!(pixels(&at_once)[13..21], pixels(&slowly)[13..21]);
    assert_ne!(pixels(&before)[13..21], pixels(&slowly)[13..21]);
}

#[test]
fn strength_follows_a_controller() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 2);
    let rig = Rig::new(&model, EIGHT, CAPS);
    let source = gst_controller::InterpolationControlSource::new();
    source.set_mode(gst_controller::InterpolationMode::None);
    let values = source.upcast_ref::<gst_controller::TimedValueControlSource>();
    values.set(gst::ClockTime::ZERO, 0.0);
    values.set(gst::ClockTime::from_nseconds(6 * FRAME), 1.0);
    let binding = gst_controller::DirectControlBinding::new(&rig.filter, "strength", &source);
    rig.filter.add_control_binding(&binding).unwrap();
    rig.start();
    rig.push_numbers(0..12);
    rig.end();
    rig.outcome().unwrap();
    let frames = rig.frames();
    for (number, frame) in frames.iter().enumerate() {
        assert_eq!(frame.data == picture(number as u64), number < 6, "frame {number}");
    }
}

#[test]
fn still_pictures_cost_nothing_and_do_not_flicker() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 2);
    let rig = Rig::new(&model, "threads=1 chunk-frames=8 strength=0.5", CAPS);
    rig.start();
    for number in 0..29 {
        let mut buffer = gst::Buffer::from_slice(picture(0));
        let writable = buffer.get_mut().unwrap();
        writable.set_pts(gst::ClockTime::from_nseconds(number * FRAME));
        writable.set_duration(gst::ClockTime::from_nseconds(FRAME));
        assert_eq!(rig.push(buffer), gst::FlowReturn::Ok);
    }
    rig.end();
    rig.outcome().unwrap();
    let frames = rig.frames();
    assert_eq!((frames.len(), rig.stat("still-chunks")), (29, 3));
    assert!(frames[5..].iter().all(|frame| frame.data == frames[4].data));
}

#[test]
fn processing_sizes_keep_the_output_size() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 1);
    let own = restyled(&model, EIGHT, 6);
    for properties in ["processing-width=32", "processing-height=20", "processing-scale=0.5"] {
        let frames = restyled(&model, &format!("{EIGHT} {properties}"), 6);
        assert!(frames.iter().all(|frame| frame.data.len() == 64 * 32 * 3));
        assert_ne!(pixels(&frames), pixels(&own), "{properties}");
    }
}

#[test]
fn steadying_properties_are_heeded() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 4);
    let plain = restyled(&model, &format!("{EIGHT} color-lock=0"), 21);
    let locked = restyled(&model, &format!("{EIGHT} color-lock=1"), 21);
    assert_eq!(pixels(&plain)[..5], pixels(&locked)[..5]);
    assert_ne!(pixels(&plain)[13..], pixels(&locked)[13..]);
    let relieved = restyled(&model, &format!("{EIGHT} color-lock=0 motion-relief=0.3"), 21);
    assert_ne!(pixels(&plain)[..5], pixels(&relieved)[..5]);
}
