//! What a catalog costs in time and memory.

use allocation_counter::measure;

use super::*;

/// Time and memory depend on the machine, so that this prints and does not judge.
#[test]
#[ignore = "a measurement that judges nothing; its figures mean something in release and on an idle machine only; the command is in docs/testing.md"]
fn what_a_record_costs_in_time_and_memory() {
    const COUNT: u32 = 10_000;
    let mut world = World::new();
    let from = |n: u32| Source::Peer { peer: id(1_000_000 + n % 64), reach: Reach::World };
    let heard = |world: &World, n: u32, seq: u64| {
        let sighting = Sighting::new(record(n, seq), world.now, world.clock(), Duration::ZERO);
        Input::Heard { sighting, source: from(n) }
    };
    let bytes = record(0, 1).bytes().len();
    println!("record of {bytes} bytes; {} bytes per handle", size_of::<Record>());
    for (what, seq, base, with_snapshot) in [
        ("added", 1, 0, false),
        ("updated", 2, 0, false),
        ("updated, a snapshot outstanding after each", 3, 0, true),
        ("added to a full catalog, an older one evicted", 1, COUNT, false),
    ] {
        world.now += secs(1);
        let mut elapsed = Duration::ZERO;
        let mut snapshot = with_snapshot.then(|| world.catalog.snapshot());
        let held = measure(|| {
            let inputs: Vec<_> = (base..base + COUNT).map(|n| heard(&world, n, seq)).collect();
            let mut out = Vec::new();
            for input in inputs {
                out.clear();
                let start = Instant::now();
                world.catalog.handle(world.now, input, &mut out);
                elapsed += start.elapsed();
                if with_snapshot {
                    snapshot = Some(world.catalog.snapshot());
                }
            }
        });
        let each = held.bytes_current / i64::from(COUNT);
        let known = snapshot.map_or(world.catalog.known().len(), |snapshot| snapshot.len());
        println!("{what}: {:?} each; {each} bytes more each; {known} known", elapsed / COUNT);
    }
}
