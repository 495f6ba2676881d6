//! The numbers as text that monitoring systems read.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::metrics::{Family, Metrics, ProtocolMetrics};

impl Metrics {
    /// The snapshot as OpenMetrics 1.0 text, each name prefixed with `kinfolk_`.
    pub fn to_openmetrics(&self) -> String {
        let mut text = Exposition::default();
        let sessions = &self.sessions;
        text.gauge("sessions_live", "Live sessions.", sessions.live);
        text.labelled_gauge(
            "sessions",
            "Sessions by who opened them.",
            "direction",
            &[("inbound", sessions.inbound), ("outbound", sessions.outbound)],
        );
        text.labelled_gauge(
            "sessions_pending",
            "Sessions that are not live.",
            "state",
            &[
                ("dialling", sessions.dialling),
                ("parked", sessions.parked),
                ("closing", sessions.closing),
            ],
        );
        text.counter("sessions_established", "Sessions that became live.", sessions.established);
        text.labelled_gauge(
            "peers",
            "Peers by what they do.",
            "state",
            &[
                ("remembered", self.peers.remembered),
                ("connected", self.peers.connected),
                ("waiting_to_dial", self.peers.waiting_to_dial),
                ("backing_off", self.peers.backing_off),
                ("banned", self.peers.banned),
            ],
        );
        let addresses = &self.addresses;
        text.gauge("peers_addressed", "Peers with addresses.", addresses.peers);
        text.counter(
            "addresses_evicted",
            "Peers whose addresses made room for others.",
            addresses.evicted,
        );
        text.counter(
            "addresses_refused",
            "Times that the addresses of a peer found no room.",
            addresses.refused,
        );
        text.counter("dials_started", "Dials started.", self.dials_started);
        text.counter(
            "incoming_accepted",
            "Incoming connections that went on to their handshake.",
            self.incoming_accepted,
        );
        text.gauge("intents_waiting", "Intents that wait for a link.", self.intents_waiting);
        text.family("intents_ended", "Intents by outcome.", "outcome", &self.intents_ended);
        text.gauge("handshakes", "Incoming handshakes under way.", self.handshakes);
        text.gauge("manager_queue", "Messages waiting for the peer manager.", self.manager_queue);
        text.gauge("streams_inbound", "Incoming streams being served.", self.streams_inbound);
        let discovery = &self.discovery;
        text.labelled_gauge(
            "catalog",
            "Peers in the catalog by what is known of them, and dead records remembered.",
            "state",
            &[("known", discovery.known), ("proven", discovery.proven), ("dead", discovery.dead)],
        );
        text.labelled_gauge(
            "exchanges_running",
            "Exchanges under way by who opened them.",
            "direction",
            &[("outbound", discovery.exchanges_outbound), ("inbound", discovery.exchanges_inbound)],
        );
        text.labelled_gauge(
            "walkers",
            "Walkers by what they do.",
            "state",
            &[("visiting", discovery.walkers_visiting), ("resting", discovery.walkers_resting)],
        );
        text.gauge(
            "neighbours",
            "Peers that announcements are exchanged with.",
            discovery.neighbours,
        );
        text.gauge(
            "subscriptions_asking",
            "Peers that have asked to subscribe to a producer and have no answer yet.",
            self.streams.subscriptions_asking,
        );
        text.counter(
            "store_failures",
            "Times that something could not be saved in the state directory.",
            discovery.store_failures,
        );
        text.counter("signatures_checked", "Signatures checked.", discovery.signatures_checked);
        for (family, label, counts) in [
            (Family::IncomingRefused, "reason", &self.incoming_refused),
            (Family::LinkRefused, "code", &self.links_refused),
            (Family::DialFailed, "reason", &self.dials_failed),
            (Family::SessionEnded, "how", &sessions.ended),
            (Family::StreamRefused, "code", &self.streams_refused),
            (Family::Restarted, "actor", &self.restarts),
            (Family::Panicked, "where", &self.panics),
            (Family::RecordIgnored, "reason", &self.discovery.ignored),
            (Family::RecordRejected, "reason", &self.discovery.rejected),
            (Family::RecordRemoved, "reason", &self.discovery.removed),
            (Family::ExchangeEnded, "how", &self.discovery.exchanges),
            (Family::AnnouncementDropped, "reason", &self.discovery.announcements_dropped),
            (Family::NewsDropped, "what", &self.discovery.news_dropped),
            (Family::Store, "what", &self.discovery.store_defects),
            (Family::HintDropped, "reason", &self.discovery.hints_dropped),
            (Family::MdnsFailed, "how", &self.discovery.mdns_failures),
            (Family::SubscriptionRefused, "reason", &self.streams.subscriptions_refused),
            (Family::SubscriptionEnded, "how", &self.streams.subscriptions_ended),
            (Family::RenewalIgnored, "reason", &self.streams.renewals_ignored),
            (Family::SourceEnded, "how", &self.streams.sources_ended),
            (Family::DatagramDropped, "reason", &self.streams.datagrams_dropped),
        ] {
            text.family(family.name(), family.help(), label, counts);
        }
        type Read = fn(&ProtocolMetrics) -> u64;
        let columns: [(&str, &str, Read); 8] = [
            ("streams_opened", "Streams opened.", |m| m.opened),
            ("streams_served", "Streams that a handler took.", |m| m.served),
            ("protocol_refused", "Incoming streams refused.", |m| m.refused),
            ("handler_failures", "Handlers that returned an error.", |m| m.handler_failures),
            ("handler_panics", "Handlers that panicked.", |m| m.handler_panics),
            ("responses_untaken", "Responses that callers did not take in time.", |m| {
                m.responses_untaken
            }),
            ("bytes_sent", "Payload bytes sent.", |m| m.bytes_sent),
            ("bytes_received", "Payload bytes received.", |m| m.bytes_received),
        ];
        for (name, help, read) in columns {
            text.head(name, help, "counter");
            for (protocol, metrics) in &self.protocols {
                text.sample(name, "_total", Some(("protocol", protocol)), read(metrics));
            }
        }
        text.head("handlers_active", "Handlers running.", "gauge");
        for (protocol, metrics) in &self.protocols {
            text.sample("handlers_active", "", Some(("protocol", protocol)), metrics.active);
        }
        text.finish()
    }
}

/// Writes OpenMetrics text.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# TYPE kinfolk_{name} {kind}\n# HELP kinfolk_{name} {help}");
    }

    fn sample(
        &mut self,
        name: &str,
        suffix: &str,
        label: Option<(&str, &str)>,
        value: impl std::fmt::Display,
    ) {
        let label = label.map_or_else(String::new, |(key, value)| {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            format!("{{{key}=\"{value}\"}}")
        });
        let _ = writeln!(self.0, "kinfolk_{name}{suffix}{label} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.head(name, help, "gauge");
        self.sample(name, "", None, value);
    }

    fn labelled_gauge(&mut self, name: &str, help: &str, key: &str, values: &[(&str, usize)]) {
        self.head(name, help, "gauge");
        for (label, value) in values {
            self.sample(name, "", Some((key, label)), value);
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, help, "counter");
        self.sample(name, "_total", None, value);
    }

    fn family(&mut self, name: &str, help: &str, key: &str, counts: &BTreeMap<&'static str, u64>) {
        self.head(name, help, "counter");
        for (label, count) in counts {
            self.sample(name, "_total", Some((key, label)), count);
        }
    }

    fn finish(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use kinfolk_core::id::ProtocolName;
    use kinfolk_core::intent::Outcome;

    use crate::metrics::tests::snapshot;
    use crate::metrics::{Counters, Family};

    #[test]
    fn the_export_is_openmetrics_text_with_escaped_labels() {
        let counters = Counters::default();
        counters.outcome(&Outcome::Done);
        counters.count(Family::Restarted, "accept");
        let name = ProtocolName::new("a\"b\\c/1").expect("valid name");
        counters.protocol(&name, 10).served.fetch_add(3, Ordering::Relaxed);
        let text = snapshot(&counters).to_openmetrics();

        assert!(text.ends_with("# EOF\n"));
        assert!(text.contains("kinfolk_intents_ended_total{outcome=\"done\"} 1\n"), "{text}");
        assert!(text.contains("kinfolk_restarts_total{actor=\"accept\"} 1\n"), "{text}");
        assert!(
            text.contains("kinfolk_streams_served_total{protocol=\"a\\\"b\\\\c/1\"} 3\n"),
            "{text}"
        );
        let types = text.lines().filter(|line| line.starts_with("# TYPE")).count();
        let names: std::collections::BTreeSet<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|rest| rest.split(' ').next())
            .collect();
        assert_eq!(types, names.len(), "a family is declared twice");
    }
}
