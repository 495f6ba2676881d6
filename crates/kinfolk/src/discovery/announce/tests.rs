//! Tests of the announcer: networks of machines in virtual time, and strangers that break the rules.

mod attacks;
mod frames;
mod network;
mod spread;

use std::collections::BTreeSet;

use super::Dropped;

#[test]
fn every_reason_has_a_name_of_its_own() {
    let names: BTreeSet<_> = Dropped::all().map(Dropped::name).collect();
    assert_eq!(names.len(), Dropped::all().count());
}
