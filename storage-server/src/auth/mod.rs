//! Who a peer is: [`principal`] tells it of a verified certificate.

mod principal;

pub use self::principal::{IdentityError, Principal};
