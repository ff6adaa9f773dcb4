//! A broadcast to clients that compress: beside our own plain delivery of as many bytes, and beside other servers that
//! compress.

use benches::Result;

use super::line::{Goal, Line};
use crate::{
    Goals,
    peers::{Bun, NodeWs, Peer},
    scenario::deflate::{self, CLIENTS, Figures},
    series::Series,
};

/// Seconds for which each server is measured.
const SECONDS: f64 = 2.0;
const QUICK_SECONDS: f64 = 0.5;

pub(super) fn compression(options: &Goals) -> Result<Vec<Line>> {
    let seconds = if options.quick { QUICK_SECONDS } else { SECONDS };
    let others: [&dyn Peer; 2] = [&Bun, &NodeWs];
    let (mut ours, mut plain, mut large, mut theirs) = (Vec::new(), Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..options.rounds() {
        let compressed = deflate::ours(true, seconds)?;
        ours.push(Some(compressed));
        plain.push(Some(deflate::plain(compressed.bytes, seconds)?));
        large.push(Some(deflate::ours(false, seconds)?));
        for (peer, figures) in others.iter().zip(&mut theirs) {
            let there = peer.missing().is_none();
            figures.push(there.then(|| deflate::compressing(*peer, seconds)).transpose()?);
        }
    }
    let cpu = |figures: &[Option<Figures>]| -> Series {
        figures.iter().map(|figures| figures.map(|figures| figures.cpu)).collect()
    };
    let bytes = |figures: &[Option<Figures>]| -> Series {
        figures.iter().map(|figures| figures.map(|figures| figures.bytes)).collect()
    };
    let what = format!("CPU per delivery, 2 KB of JSON compressed to {CLIENTS} clients");
    let line = |reference: &[Option<Figures>], of: &str, goal| {
        Line::ratio(what.clone(), &cpu(&ours), "µs", &cpu(reference), of, goal)
    };
    let mut lines = vec![
        line(&plain, "plain messages of the compressed size", Goal::AtMost(1.3)),
        line(&large, "the same messages plain", Goal::None),
    ];
    let on_wire = "bytes on the wire, 2 KB of JSON compressed";
    lines.push(Line::ratio(on_wire, &bytes(&ours), "bytes", &bytes(&large), "plain", Goal::None));
    for (peer, figures) in others.iter().zip(&theirs) {
        match peer.missing() {
            None => {
                lines.push(line(figures, peer.name(), Goal::Below(1.0)));
                let reference = bytes(figures);
                lines.push(Line::ratio(on_wire, &bytes(&ours), "bytes", &reference, peer.name(), Goal::None));
            }
            Some(how) => eprintln!("    {} is not installed: {how}", peer.name()),
        }
    }
    Ok(lines)
}
