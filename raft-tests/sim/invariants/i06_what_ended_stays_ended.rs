//! I6: a barred or resigned generation never acts again, across restarts: what was said about it once holds for ever.

use hasup::ha::pulse::Datagram;
use hasup::types::Generation;

use crate::world::World;

/// Checks a node's word about itself as it leaves.
pub fn check_sent(world: &mut World, node: usize, datagram: &Datagram) {
    let host = &mut world.nodes[node];
    let (barred, resigned) = (datagram.report.barred, datagram.report.resigned);
    host.said_barred = host.said_barred.max(barred);
    host.said_resigned = host.said_resigned.max(resigned);
    if let Some(stated) = datagram.report.data.and_then(|data| data.stated) {
        host.stated_under = host.stated_under.max(stated.under);
    }
    if let Some(asked) = datagram.asks.map(|term| term.generation)
        && asked <= host.said_resigned
    {
        let what = format!("node {} asks for generation {asked}, which it had resigned", node + 1);
        world.break_rule("I6", what);
    }
}

/// Checks a grant as it leaves.
pub fn check_granted(world: &mut World, node: usize, to: usize, reply: &Datagram) {
    let Some(granted) = reply.echo.and_then(|echo| echo.grants).map(|term| term.generation) else { return };
    let host = &world.nodes[node];
    if granted <= host.said_barred {
        let what = format!(
            "node {} acknowledges generation {granted} to node {}, having said that it barred {}",
            node + 1,
            to + 1,
            host.said_barred
        );
        world.break_rule("I6", what);
    }
}

/// Checks a promotion.
pub fn check_promotion(world: &mut World, node: usize, generation: Generation) {
    if generation <= world.nodes[node].said_resigned {
        world.break_rule(
            "I6",
            format!("node {} promotes under generation {generation}, which it had resigned", node + 1),
        );
    }
}

/// Checks a replication connection that is made or used: a bar as such speaks of votes, a position stated under it of log. What one
/// barred node fetches from another is I5's.
pub fn check_stream(world: &mut World, stream: usize) {
    let stream = &world.streams[stream];
    let host = &world.nodes[stream.standby];
    if stream.generation <= host.stated_under && !stream.is_fetch {
        let what = format!(
            "node {} streams from node {} under generation {}, having stated its position under {}",
            stream.standby + 1,
            stream.primary + 1,
            stream.generation,
            host.stated_under
        );
        world.break_rule("I6", what);
    }
}
