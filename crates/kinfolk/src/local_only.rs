//! Lets the crate's messages be sent whatever features of ractor the app turns on.
//!
//! With ractor's `cluster` feature every message type must say how it travels to another process, and a crate cannot see whether the
//! feature is on. The macro below implements ractor's `BytesConvertable` exactly when that trait is in ractor's root, and a private
//! stand-in of the same name otherwise. No message of kinfolk ever travels: each carries channels, connections or streams.

/// The stand-in that the macro implements where ractor has no such trait.
#[allow(dead_code, reason = "of use only where ractor has no such trait")]
pub(crate) trait BytesConvertable: Sized {
    fn into_bytes(self) -> Vec<u8>;
    fn from_bytes(bytes: Vec<u8>) -> Self;
}

/// Marks a message type as never leaving the process.
macro_rules! local_only {
    ($message:ty) => {
        $crate::local_only::local_only!(@[] $message);
    };
    (@[$($generic:tt)*] $message:ty) => {
        const _: () = {
            #[allow(unused_imports, reason = "of use only where ractor has no such trait")]
            use $crate::local_only::*;
            // A glob import in an inner block would be ambiguous beside another glob; in its own block it shadows.
            const _: () = {
                #[allow(unused_imports, reason = "of use only where ractor has the trait")]
                use ractor::*;
                impl<$($generic)*> BytesConvertable for $message {
                    fn into_bytes(self) -> Vec<u8> {
                        Vec::new()
                    }
                    // The one panic that bytes from outside can reach: only if an app puts a ractor `NodeServer` beside kinfolk and
                    // sends bytes to a kinfolk actor. ractor catches it and drops the message; there is no value to return.
                    #[allow(clippy::panic, reason = "as said above")]
                    fn from_bytes(_bytes: Vec<u8>) -> Self {
                        panic!("messages of kinfolk never leave their process")
                    }
                }
            };
        };
    };
}

pub(crate) use local_only;
