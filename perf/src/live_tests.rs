//! The program's frames, through the kernel's plain test run, against the writer's.

use super::*;
use crate::traffic::{Size, Stamp};
use crate::writer_samples::samples;

/// Frames that the program makes of `traffic`, one after the other.
fn frames(traffic: &Traffic, count: usize) -> Vec<Vec<u8>> {
    let writer = FrameWriter::new(traffic).unwrap();
    let settings = Settings { traffic: traffic.clone(), writer, index: 1, limit: None };
    let mut storage = MaybeUninit::uninit();
    let skeleton = settings.load(&mut storage).expect("this test needs root");
    // As a page comes back: full of what others left, but for the payload.
    let mut page = settings.longest().to_vec();
    page[..settings.writer.layout.headers].fill(0xee);
    let mut run = || {
        let mut out = vec![0; 2048];
        let input = ProgramInput {
            data_in: Some(&page),
            data_out: Some(&mut out),
            repeat: 1,
            ..ProgramInput::default()
        };
        let output = skeleton.progs.ovl_live.test_run(input).unwrap();
        assert_eq!(output.return_value, 4, "XDP_REDIRECT");
        let len = output.data.map_or(0, |data| data.len());
        out.truncate(len);
        page[..len].copy_from_slice(&out);
        page[..settings.writer.layout.headers].fill(0xee);
        out
    };
    (0..count).map(|_| run()).collect()
}

#[test]
#[ignore = "needs root"]
fn the_program_writes_the_writers_frames_byte_for_byte() {
    for traffic in samples() {
        let mut writer = FrameWriter::new(&traffic).unwrap();
        for (number, frame) in frames(&traffic, 30).into_iter().enumerate() {
            let time = Stamp::read(&frame).map_or(0, |stamp| stamp.nanoseconds);
            let mut wanted = vec![0; 2048];
            let len = writer.next(&mut wanted, time).unwrap();
            assert_eq!(frame, wanted[..len], "frame {number} of {traffic:?}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_frame_that_is_not_due_is_not_sent() {
    let mut traffic = samples().remove(0);
    // Far apart, for emulated kernels.
    traffic.rate = Some(4.0);
    let writer = FrameWriter::new(&traffic).unwrap();
    let settings = Settings { traffic, writer, index: 1, limit: Some(2) };
    let mut storage = MaybeUninit::uninit();
    let skeleton = settings.load(&mut storage).expect("this test needs root");
    let run = |expected: u32| {
        let data_in = Some(settings.longest());
        let input = ProgramInput { data_in, repeat: 1, ..ProgramInput::default() };
        let output = skeleton.progs.ovl_live.test_run(input).unwrap();
        assert_eq!(output.return_value, expected);
    };
    let (drop, redirect) = (1, 4);
    run(redirect);
    run(drop);
    std::thread::sleep(Duration::from_millis(260));
    run(redirect);
    std::thread::sleep(Duration::from_millis(260));
    run(drop);
    assert_eq!(word(&state(&MapHandle::try_from(&skeleton.maps.bss).unwrap()).unwrap(), 0), 2);
    assert!(matches!(settings.traffic.size, Size::Bytes(64)));
}
