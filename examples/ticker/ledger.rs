//! What a consumer got from each producer, and whether that can be right.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kinfolk::{EndpointId, Received};
use tokio::sync::Notify;

use crate::Quote;

/// Keeps an account for each producer. Every clone is the same.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    accounts: Arc<Mutex<BTreeMap<EndpointId, Account>>>,
    noted: Arc<Notify>,
}

/// What came from one producer.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// Quotes that were received.
    pub items: u64,
    /// Quotes that were counted as missed.
    pub missed: u64,
    /// Times that the producer started anew.
    pub restarts: u64,
    /// What cannot be right.
    pub faults: Vec<String>,
    /// The number that has to come next.
    next: Option<u64>,
    shown: u64,
    of_this_life: u64,
}

impl Ledger {
    fn with<R>(&self, source: EndpointId, change: impl FnOnce(&mut Account) -> R) -> R {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        change(accounts.entry(source).or_default())
    }

    /// Takes down what was received.
    pub fn note(&self, received: &Received<Quote>) {
        match received {
            Received::Item { source, number, .. } => self.with(*source, |account| {
                if let Some(next) = account.next
                    && next != *number
                    && account.faults.len() < 5
                {
                    account.faults.push(format!("expected number {next}, came {number}"));
                }
                account.next = Some(number + 1);
                account.items += 1;
                account.of_this_life += 1;
            }),
            Received::Gap { source, missed } => self.with(*source, |account| {
                account.missed += missed;
                account.next = account.next.map(|next| next + missed);
            }),
            Received::Restarted { source } => self.with(*source, |account| {
                account.restarts += 1;
                account.of_this_life = 0;
                account.next = None;
            }),
            _ => {}
        }
        self.noted.notify_waiters();
    }

    /// What came from a producer so far.
    pub fn account(&self, source: EndpointId) -> Account {
        self.with(source, |account| account.clone())
    }

    /// Quotes received since this was asked last.
    pub fn since_last(&self, source: EndpointId) -> u64 {
        self.with(source, |account| {
            account.items - std::mem::replace(&mut account.shown, account.items)
        })
    }

    /// Waits until a producer has started anew so often, and has sent something since.
    pub async fn until(&self, source: EndpointId, restarts: u64) {
        loop {
            let noted = self.noted.notified();
            let account = self.account(source);
            if account.restarts >= restarts && account.of_this_life > 0 {
                return;
            }
            noted.await;
        }
    }
}
