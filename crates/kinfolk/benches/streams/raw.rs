//! iroh alone, as an app would use it: items behind their lengths on one stream per consumer, buffered at both ends.

use std::time::{Duration, Instant};

use iroh::Endpoint;
use iroh::endpoint::{Connection, RecvStream, SendStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::mpsc;

use crate::bare::{bind, connect};
use crate::blob::Blob;

/// What both ends buffer.
const BUFFER: usize = 64 * 1024;

/// What a stream is for, said by its first byte.
const ITEMS: u8 = 1;
const ECHO: u8 = 2;
const FIRST: u8 = 3;

/// Both ends.
pub struct Raw {
    endpoints: [Endpoint; 2],
    connection: Connection,
    senders: Vec<BufWriter<SendStream>>,
    receivers: Vec<BufReader<RecvStream>>,
    echo: (SendStream, RecvStream),
}

impl Raw {
    /// Starts both ends, with so many streams for items between them.
    pub async fn start(count: usize) -> Self {
        let (there, here) = (bind().await, bind().await);
        let (found, mut streams) = mpsc::unbounded_channel();
        tokio::spawn(accept(here.clone(), found));
        let connection = connect(&there, here.addr()).await;
        let (mut senders, mut receivers) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (mut send, _) = connection.open_bi().await.unwrap();
            send.write_all(&[ITEMS]).await.unwrap();
            senders.push(BufWriter::with_capacity(BUFFER, send));
            let stream: RecvStream = streams.recv().await.unwrap();
            receivers.push(BufReader::with_capacity(BUFFER, stream));
        }
        let mut echo = connection.open_bi().await.unwrap();
        echo.0.write_all(&[ECHO]).await.unwrap();
        Self { endpoints: [there, here], connection, senders, receivers, echo }
    }

    /// Ends both ends.
    pub async fn shut_down(self) {
        for endpoint in self.endpoints {
            endpoint.close().await;
        }
    }

    /// Sends so many items on every stream and waits until they were read.
    pub async fn push(&mut self, blob: &Blob, count: usize) -> Duration {
        let receive = |mut receiver: BufReader<RecvStream>| async move {
            let mut item = Vec::new();
            for _ in 0..count {
                let length = receiver.read_u32_le().await.unwrap();
                item.resize(length as usize, 0);
                receiver.read_exact(&mut item).await.unwrap();
                std::hint::black_box(&item);
            }
            receiver
        };
        let start = Instant::now();
        let receiving: Vec<_> =
            self.receivers.drain(..).map(|receiver| tokio::spawn(receive(receiver))).collect();
        let (mut senders, mut blob) = (std::mem::take(&mut self.senders), blob.clone());
        let sending = tokio::spawn(async move {
            let mut entry = Vec::new();
            for _ in 0..count {
                blob.number += 1;
                encode(&blob, &mut entry);
                for sender in &mut senders {
                    sender.write_all(&entry).await.unwrap();
                }
            }
            for sender in &mut senders {
                sender.flush().await.unwrap();
            }
            senders
        });
        self.senders = sending.await.unwrap();
        for receiving in receiving {
            self.receivers.push(receiving.await.unwrap());
        }
        start.elapsed()
    }

    /// Half of what an item needs there and back.
    pub async fn lone(&mut self, blob: &Blob) -> Duration {
        let (send, recv) = &mut self.echo;
        let start = Instant::now();
        let mut entry = Vec::new();
        encode(blob, &mut entry);
        send.write_all(&entry).await.unwrap();
        recv.read_exact(&mut entry).await.unwrap();
        start.elapsed() / 2
    }

    /// What an item needs one way, while nothing but acknowledgements goes the other way: each is a packet of its own then, where an echo carries that of what it answers.
    pub async fn one_way(&mut self, blob: &Blob) -> Duration {
        let (sender, receiver) = (&mut self.senders[0], &mut self.receivers[0]);
        let start = Instant::now();
        let mut entry = Vec::new();
        encode(blob, &mut entry);
        sender.write_all(&entry).await.unwrap();
        sender.flush().await.unwrap();
        let length = receiver.read_u32_le().await.unwrap();
        entry.resize(length as usize, 0);
        receiver.read_exact(&mut entry).await.unwrap();
        start.elapsed()
    }

    /// Opens a stream and waits for the first byte: one round trip.
    pub async fn first(&self) -> Duration {
        let start = Instant::now();
        let (mut send, mut recv) = self.connection.open_bi().await.unwrap();
        send.write_all(&[FIRST]).await.unwrap();
        let mut byte = [0];
        recv.read_exact(&mut byte).await.unwrap();
        let took = start.elapsed();
        send.finish().unwrap();
        took
    }
}

/// The item behind its length.
fn encode(blob: &Blob, entry: &mut Vec<u8>) {
    let mut room = std::mem::take(entry);
    room.clear();
    room.extend_from_slice(&[0; 4]);
    *entry = postcard::to_extend(blob, room).unwrap();
    let length = u32::try_from(entry.len() - 4).unwrap();
    entry[..4].copy_from_slice(&length.to_le_bytes());
}

async fn accept(endpoint: Endpoint, found: mpsc::UnboundedSender<RecvStream>) {
    while let Some(incoming) = endpoint.accept().await {
        let Ok(connection) = incoming.await else { continue };
        while let Ok((mut send, mut recv)) = connection.accept_bi().await {
            let found = found.clone();
            tokio::spawn(async move {
                let mut first = [0];
                if recv.read_exact(&mut first).await.is_err() {
                    return;
                }
                match first[0] {
                    // The other half ends here, which nobody minds.
                    ITEMS => drop(found.send(recv)),
                    ECHO => {
                        while let Ok(Some(chunk)) = recv.read_chunk(BUFFER).await {
                            if send.write_chunk(chunk).await.is_err() {
                                return;
                            }
                        }
                    }
                    _ => {
                        if send.write_all(&[FIRST]).await.is_ok() {
                            let _ = send.finish();
                        }
                    }
                }
            });
        }
    }
}
