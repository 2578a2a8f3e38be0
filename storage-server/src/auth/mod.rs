//! Who a peer is: [`principal`] tells it of a verified certificate.

mod principal;

pub(crate) use self::principal::{IdentityError, Principal};
