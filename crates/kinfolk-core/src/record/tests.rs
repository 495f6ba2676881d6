//! Tests of records: their bytes, what is refused and why, and that all which the bounds allow fits.

use std::collections::BTreeSet;

use iroh_base::SecretKey;

use super::*;

const NOW: UnixMillis = UnixMillis::new(1_700_000_000_000);

fn network() -> NetworkId {
    NetworkId::from_name("my-app")
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n; 32])
}

fn addr(text: &str) -> TransportAddr {
    match text.parse() {
        Ok(addr) => TransportAddr::Ip(addr),
        Err(_) => TransportAddr::Relay(text.parse().unwrap()),
    }
}

fn example() -> Draft {
    let mut draft = Draft::new(network());
    draft.add_address(addr("203.0.113.7:4433")).unwrap();
    draft.add_address(addr("https://relay.example/")).unwrap();
    draft.add_topic(Topic::from_name("weather")).unwrap();
    draft.add_offer(Offer::from_name("readings")).unwrap();
    draft
}

fn signed(draft: &Draft) -> Record {
    draft.sign(&key(7), Seq::new(300), NOW).unwrap()
}

fn verify(bytes: &[u8]) -> Result<Record, RecordError> {
    Record::verify(bytes, network(), NOW)
}

/// A record with this body, signed as it should be.
fn sealed(body: &[u8]) -> Vec<u8> {
    let signature = key(7).sign(&message(RECORD_VERSION, body)).to_bytes();
    [&[RECORD_VERSION], &signature[..], body].concat()
}

/// What comes before the fields of a body.
fn owner() -> Vec<u8> {
    [&key(7).public().as_bytes()[..], network().as_bytes()].concat()
}

/// A record with these fields behind id and network, signed as it should be.
fn with_fields(fields: &[u8]) -> Vec<u8> {
    sealed(&[&owner()[..], fields].concat())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_record_has_exactly_these_bytes() {
    let record = signed(&example());
    let bytes = concat!(
        "01",                                                               // version
        "8f5bd3ff25e95893f1ebeb80183d7b62b1e237125a68f5c23bcbc8c6f1a88b22", // signature
        "b2532e77b581b219a8e6a4f6f3792489fba218d3512a20ad16aa1d626591c203",
        "ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c", // id
        "82736b82d12216b78dae1de9da437287",                                 // network
        "00",                                                               // present
        "ac02",                                                             // seq 300
        "80d095ffbc31",                                                     // issued at
        "880e",                                                             // ttl 1800
        "02",                                                               // two addresses
        "001668747470733a2f2f72656c61792e6578616d706c652f",                 // a relay
        "01cb007107d122",                                                   // IPv4
        "0159a99cc4f17568f141c340d818a50f3d",                               // one topic
        "01781a02d5854eca12858f0f8859091d50",                               // one offer
    );
    assert_eq!(hex(record.bytes()), bytes);
    assert_eq!(verify(record.bytes()), Ok(record));
}

#[test]
fn a_departure_has_exactly_these_bytes() {
    let record = Record::departure(network(), &key(7), Seq::new(301), NOW).unwrap();
    let bytes = concat!(
        "01",                                                               // version
        "316a707b0a8652023b75352a56a0ca4be78de6fd23605eae3664624022d2a704", // signature
        "4514d53f558a840032565f8e6bed040d8756abcd02efebac1b0fc2d45410690b",
        "ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c", // id
        "82736b82d12216b78dae1de9da437287",                                 // network
        "01",                                                               // departed
        "ad02",                                                             // seq 301
        "80d095ffbc31",                                                     // issued at
        "80a305",                                                           // ttl 86400
    );
    assert_eq!(hex(record.bytes()), bytes);
    assert_eq!(verify(record.bytes()), Ok(record));
}

#[test]
fn a_record_says_what_was_put_into_its_draft() {
    let extensions = Extensions::none().with(3, b"later").unwrap();
    let record = signed(&example().with_extensions(extensions.clone()));
    let record = verify(record.bytes()).unwrap();
    assert_eq!(record.id(), key(7).public());
    assert_eq!(record.seq(), Seq::new(300));
    assert_eq!(record.issued_at(), NOW);
    assert_eq!(record.ttl(), Ttl::DEFAULT);
    assert_eq!(record.kind(), Kind::Present);
    let addresses: Vec<_> = record.addresses().collect();
    assert_eq!(addresses, [addr("https://relay.example/"), addr("203.0.113.7:4433")]);
    assert!(record.topics().eq([Topic::from_name("weather")]));
    assert!(record.offers().eq([Offer::from_name("readings")]));
    assert_eq!(record.extensions(), extensions);
}

#[test]
fn a_departure_names_nothing() {
    let record = Record::departure(network(), &key(7), Seq::new(1), NOW).unwrap();
    assert!(record.is_departure());
    assert_eq!(record.ttl(), Ttl::MAX);
    assert_eq!(record.addresses().count(), 0);
    assert_eq!(record.topics().count(), 0);
    assert_eq!(record.offers().count(), 0);
    assert!(record.extensions().is_empty());
}

#[test]
fn the_same_draft_gives_the_same_bytes_in_whatever_order_it_was_filled() {
    let parts = [addr("203.0.113.7:1"), addr("203.0.113.7:2"), addr("[::ffff:203.0.113.7]:2")];
    let (mut forward, mut backward) = (Draft::new(network()), Draft::new(network()));
    for part in parts.clone() {
        forward.add_address(part).unwrap();
    }
    for part in parts.into_iter().rev() {
        backward.add_address(part).unwrap();
    }
    assert_eq!(signed(&forward), signed(&backward));
    assert_eq!(signed(&forward).addresses().count(), 2);
}

#[test]
fn a_record_never_speaks_of_another_node_than_the_one_that_signed_it() {
    let mut bytes = signed(&example()).bytes().to_vec();
    let victim = key(8).public();
    bytes[65..97].copy_from_slice(victim.as_bytes());
    assert_eq!(Record::claimed_id(&bytes), Some(victim.as_bytes()));
    assert_eq!(verify(&bytes), Err(RecordError::BadSignature));
}

#[test]
fn a_signature_on_something_else_is_not_one_on_a_record() {
    let record = signed(&example());
    let body = &record.bytes()[65..];
    for message in [body.to_vec(), [SIGNATURE_CONTEXT, body].concat()] {
        let signature = key(7).sign(&message).to_bytes();
        let bytes = [&[RECORD_VERSION], &signature[..], body].concat();
        assert_eq!(verify(&bytes), Err(RecordError::BadSignature));
    }
}

#[test]
fn a_record_of_another_network_is_refused_without_a_check_of_its_signature() {
    let other = NetworkId::from_name("other");
    let mut bytes = Draft::new(other).sign(&key(7), Seq::new(1), NOW).unwrap().bytes().to_vec();
    assert_eq!(verify(&bytes), Err(RecordError::WrongNetwork(other)));
    bytes[1] ^= 1;
    assert_eq!(verify(&bytes), Err(RecordError::WrongNetwork(other)));
}

#[test]
fn a_record_of_a_later_version_is_refused_by_its_version() {
    let mut bytes = signed(&example()).bytes().to_vec();
    bytes[0] = 2;
    assert_eq!(verify(&bytes), Err(RecordError::UnknownVersion(2)));
}

#[test]
fn an_id_that_is_no_key_is_refused() {
    let mut bytes = signed(&example()).bytes().to_vec();
    // No point of the curve has this coordinate.
    bytes[65..97].copy_from_slice(&[2; 32]);
    assert_eq!(verify(&bytes), Err(RecordError::InvalidKey));
}

#[test]
fn a_record_from_the_future_is_refused() {
    let ahead = |millis| {
        let issued_at = UnixMillis::new(NOW.get() + millis);
        let record = example().sign(&key(7), Seq::new(1), issued_at).unwrap();
        verify(record.bytes()).map(|_| ())
    };
    assert_eq!(ahead(60_000), Ok(()));
    let too_far = Duration::from_millis(60_001);
    assert_eq!(ahead(60_001), Err(RecordError::FromFuture { ahead: too_far }));
    assert!(matches!(ahead(10 * 365 * 86_400_000), Err(RecordError::FromFuture { .. })));
}

#[test]
fn a_record_from_the_past_is_verified_as_the_catalog_knows_how_old_it_may_be() {
    let record = example().sign(&key(7), Seq::new(1), UnixMillis::new(0)).unwrap();
    assert_eq!(verify(record.bytes()), Ok(record));
}

#[test]
fn a_time_to_live_above_the_cap_or_of_nothing_is_refused() {
    for (ttl, secs) in [
        (&b"\x00"[..], 0),
        (b"\x81\xa3\x05", 86_401),
        (b"\xff\xff\xff\xff\x0f", u64::from(u32::MAX)),
    ] {
        let fields = [&b"\x01\x05\x06"[..], ttl].concat();
        assert_eq!(verify(&with_fields(&fields)), Err(RecordError::InvalidTtl(TtlError { secs })));
    }
    assert!(verify(&with_fields(b"\x01\x05\x06\x80\xa3\x05")).is_ok());
}

#[test]
fn a_record_of_more_than_a_kibibyte_is_refused_before_anything_else() {
    let len = RECORD_MAX + 1;
    assert_eq!(verify(&vec![0; len]), Err(RecordError::TooLarge { len }));
}

#[test]
fn needless_bytes_in_a_number_are_refused() {
    // Sequence number, time of issue, time to live, and the count of addresses.
    let fields: [&[u8]; 4] = [
        b"\x00\x85\x00\x06\x07\x00\x00\x00",
        b"\x00\x05\x86\x00\x07\x00\x00\x00",
        b"\x00\x05\x06\x87\x00\x00\x00\x00",
        b"\x00\x05\x06\x07\x80\x00\x00\x00",
    ];
    assert!(verify(&with_fields(b"\x00\x05\x06\x07\x00\x00\x00")).is_ok());
    for fields in fields {
        assert_eq!(verify(&with_fields(fields)), Err(RecordError::NonCanonical), "{fields:?}");
    }
}

#[test]
fn lists_in_another_order_or_with_a_value_twice_are_refused() {
    let before = b"\x00\x05\x06\x07";
    let lists = |addresses: &[u8], topics: &[u8]| {
        verify(&with_fields(&[before, addresses, topics, b"\x00"].concat())).map(|_| ())
    };
    let addresses = |ports: [u8; 2]| -> Vec<u8> {
        let address = |port| [1, 1, 2, 3, 4, port];
        [&[2][..], &address(ports[0]), &address(ports[1])].concat()
    };
    let topics = |tags: [u8; 2]| [&[2][..], &[tags[0]; 16], &[tags[1]; 16]].concat();
    assert_eq!(lists(&addresses([1, 2]), &topics([1, 2])), Ok(()));
    for pair in [[2, 1], [1, 1]] {
        assert_eq!(lists(&addresses(pair), b"\x00"), Err(RecordError::NonCanonical));
        assert_eq!(lists(b"\x00", &topics(pair)), Err(RecordError::NonCanonical));
    }
}

#[test]
fn more_of_anything_than_allowed_is_refused() {
    let refused = |fields: &[u8], refused: &str| match verify(&with_fields(fields)) {
        Err(RecordError::Malformed(FrameError::InvalidField { field, .. })) => {
            assert_eq!(field, refused)
        }
        other => panic!("{other:?}"),
    };
    refused(b"\x00\x05\x06\x07\x09", "addresses");
    refused(b"\x00\x05\x06\x07\x00\x11", "topics");
    refused(b"\x00\x05\x06\x07\x00\x00\x0d", "offers");
    refused(b"\x02\x05\x06\x07", "kind");
    let relays: Vec<u8> = ["http://a/", "http://b/", "http://c/"]
        .iter()
        .flat_map(|url| [&b"\x00\x09"[..], url.as_bytes()].concat())
        .collect();
    refused(&[&b"\x00\x05\x06\x07\x03"[..], &relays].concat(), "relays");
}

#[test]
fn a_relay_written_in_another_way_than_normal_is_refused() {
    let url = "HTTPS://Relay.Example:443";
    let address = [&[1, 0, 25][..], url.as_bytes()].concat();
    let fields = [&b"\x00\x05\x06\x07"[..], &address, b"\x00\x00"].concat();
    assert_eq!(verify(&with_fields(&fields)), Err(RecordError::NonCanonical));
}

#[test]
fn a_newer_minor_version_is_understood() {
    let bytes = with_fields(b"\x01\x05\x06\x07\x09\x02hi");
    let record = verify(&bytes).unwrap();
    assert_eq!(record.extensions().get(9), Some(&b"hi"[..]));
    assert_eq!(record.bytes(), bytes);
}

/// The largest record by its fields.
fn fullest() -> Draft {
    let mut draft = Draft::new(network()).with_ttl(Ttl::MAX);
    for n in 0..RELAYS_MAX {
        let url = format!("https://{}.x{n}/", "r".repeat(RELAY_URL_MAX - 12));
        assert_eq!(url.len(), RELAY_URL_MAX);
        draft.add_address(addr(&url)).unwrap();
    }
    for n in RELAYS_MAX..ADDRESSES_MAX {
        draft.add_address(addr(&format!("[2001:db8::{n}]:65535"))).unwrap();
    }
    for n in 0..16 {
        draft.add_topic(Topic::from_bytes([n; 16])).unwrap();
    }
    for n in 0..12 {
        draft.add_offer(Offer::from_bytes([n; 16])).unwrap();
    }
    draft
}

fn largest(draft: &Draft) -> Result<Record, DraftError> {
    draft.sign(&key(7), Seq::new(u64::MAX), UnixMillis::new(u64::MAX))
}

#[test]
fn whatever_the_bounds_allow_fits_into_a_record() {
    let record = largest(&fullest()).unwrap();
    assert_eq!(record.bytes().len(), 952);
    let late = UnixMillis::new(u64::MAX);
    assert_eq!(Record::verify(record.bytes(), network(), late), Ok(record));
}

#[test]
fn a_record_too_large_to_be_announced_cannot_be_built() {
    let filled = |room: usize| {
        let extension = vec![0; room - 2];
        largest(&fullest().with_extensions(Extensions::none().with(0, &extension).unwrap()))
    };
    assert_eq!(filled(72).map(|record| record.bytes().len()), Ok(RECORD_MAX));
    assert_eq!(filled(73), Err(DraftError::TooLarge { len: RECORD_MAX + 1 }));
}

#[test]
fn a_draft_refuses_one_more_than_a_record_may_name_and_takes_what_it_has_again() {
    let mut draft = fullest();
    let before = draft.clone();
    let too_many = |what, max| Err(DraftError::TooMany { what, max });
    assert_eq!(draft.add_address(addr("203.0.113.7:1")), too_many("addresses", ADDRESSES_MAX));
    assert_eq!(draft.add_address(addr("https://one.more/")), too_many("relays", RELAYS_MAX));
    assert_eq!(draft.add_topic(Topic::from_bytes([99; 16])), too_many("topics", TOPICS_MAX));
    assert_eq!(draft.add_offer(Offer::from_bytes([99; 16])), too_many("offers", OFFERS_MAX));
    assert!(matches!(draft.add_address(addr("0.0.0.0:1")), Err(DraftError::Address(_))));
    assert_eq!(draft.add_address(addr("[2001:db8::2]:65535")), Ok(()));
    assert_eq!(draft.add_topic(Topic::from_bytes([0; 16])), Ok(()));
    assert_eq!(draft, before);
}

#[test]
fn who_is_far_away_may_not_point_anybody_at_this_machine_or_its_neighbours() {
    let mut draft = example();
    for near in ["127.0.0.1:22", "192.168.1.1:80", "http://[::1]:80/"] {
        draft.add_address(addr(near)).unwrap();
    }
    let record = signed(&draft);
    let from = |source| record.addresses_from(source).collect::<BTreeSet<_>>();
    assert_eq!(from(Reach::Machine).len(), 5);
    assert_eq!(
        from(Reach::Site),
        ["192.168.1.1:80", "203.0.113.7:4433", "https://relay.example/"].map(addr).into()
    );
    assert_eq!(from(Reach::World), ["203.0.113.7:4433", "https://relay.example/"].map(addr).into());
    assert_eq!(record.endpoint_addr(Reach::World).addrs, from(Reach::World));
}

#[test]
fn every_reason_has_a_name_of_its_own() {
    let names: BTreeSet<_> = Rejection::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Rejection::ALL.len());
    assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
}

#[test]
fn a_record_takes_little_memory_beside_its_bytes() {
    assert!(size_of::<Record>() <= 88, "{}", size_of::<Record>());
}
