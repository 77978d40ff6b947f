//! Packets out of tunnels to the pods of other workers: these get the frames as they came. There are their
//! flows, and all that is to be asked about them; what is known here would only have to be carried there, and the
//! next core waits longer for a line of it than it takes to read the headers.

use arrayvec::ArrayVec;

use super::usual;
use crate::packet::frame::Frame;
use crate::packet::meta::{Meta, Origin};
use crate::packet::vector::{VECTOR, Vector};
use crate::packet::verdict::Verdict;
use crate::stages::Context;

/// Takes the packets out of the vector that are another worker's; these and the others keep their order. Of
/// those that stay some are routed afterwards.
#[inline(never)]
pub fn phase(vector: &mut Vector, cx: &mut Context<'_>) {
    let Vector { frames, meta: about } = vector;
    let all: ArrayVec<Frame, VECTOR> = frames.drain(..).collect();
    let mut kept = 0;
    for (at, mut frame) in all.into_iter().enumerate() {
        let mut meta = about[at];
        if is_in_question(&meta) {
            ask(&mut frame, &mut meta, cx);
        }
        if let Verdict::PassOn(home) = meta.verdict {
            // As many places as a vector has packets, and empty between vectors.
            cx.passed_on.push((frame, meta.port, home));
        } else {
            about[kept] = meta;
            kept += 1;
            frames.push(frame);
        }
    }
    about.truncate(kept);
}

/// Is it out of a tunnel as nearly all are, undecided, and of no flow here?
#[inline(always)]
fn is_in_question(meta: &Meta) -> bool {
    meta.flow == 0 && meta.origin == Origin::Tunnel && meta.outer_source != 0 && meta.is_pending()
}

/// Routes the packet; one to another worker's pod becomes what it was when it came.
#[inline(always)]
fn ask(frame: &mut Frame, meta: &mut Meta, cx: &Context<'_>) {
    let route = cx.tables.routes.v4.get(meta.destination);
    let Some(home) = cx.tables.home(route.target()) else { return };
    if home == cx.worker {
        meta.route = route;
    } else if usual::put_back(frame) {
        meta.verdict = Verdict::PassOn(home);
    }
}
