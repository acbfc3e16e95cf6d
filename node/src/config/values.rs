//! What settings are written as: sizes, addresses, credits, codes. Each reads from text and writes itself back.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use spare_market::amount::{Amount, AmountError, ReadPrice, StoragePrice};
use spare_proofs::geometry::Geometry;

/// A number of bytes, written as `500GB`, `2TiB` or plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(pub u64);

const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a size; write for instance 500GB, 2TiB or 1000000");
        let text = text.trim();
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit = unit.trim();
        let scale = if unit.is_empty() {
            1
        } else {
            UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?.1
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(scale).map(Self).ok_or_else(wrong);
        }
        let number: f64 = number.parse().map_err(|_| wrong())?;
        Ok(Self((number * scale as f64) as u64))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0B");
        }
        let exact = UNITS.iter().filter(|(_, scale)| self.0.is_multiple_of(*scale));
        let (unit, scale) = exact.max_by_key(|(_, scale)| *scale).expect("every number is a multiple of 1");
        write!(f, "{}{unit}", self.0 / scale)
    }
}

impl TryFrom<String> for Size {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

/// An address to tell others, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Advertised(pub Option<IpAddr>);

impl TryFrom<String> for Advertised {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let parsed = Some(text.trim()).filter(|text| !text.is_empty()).map(str::parse).transpose();
        parsed.map(Self).map_err(|_| format!("'{text}' is not an IP address"))
    }
}

impl From<Advertised> for String {
    fn from(advertised: Advertised) -> Self {
        advertised.0.map(|ip| ip.to_string()).unwrap_or_default()
    }
}

/// Credits, as decimal text. As a price, of storage or reading, it is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Credits(pub Amount);

impl Credits {
    /// As a price of storage per TB and month.
    pub fn storage_price(self) -> StoragePrice {
        StoragePrice::per_tb_month(self.0).expect("checked when it was read")
    }

    /// As a price of reading per TB.
    pub fn read_price(self) -> ReadPrice {
        ReadPrice::per_tb(self.0).expect("checked when it was read")
    }
}

impl TryFrom<String> for Credits {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let amount: Amount = text.parse().map_err(|e: AmountError| e.to_string())?;
        let fits = StoragePrice::per_tb_month(amount).is_some() && ReadPrice::per_tb(amount).is_some();
        fits.then_some(Self(amount)).ok_or_else(|| format!("{text} credits are more than a price may be"))
    }
}

impl From<Credits> for String {
    fn from(credits: Credits) -> Self {
        credits.0.to_string()
    }
}

/// A highest price, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MaxPrice(pub Option<Credits>);

impl MaxPrice {
    /// The highest price of storage that is paid.
    pub fn storage_price(self) -> StoragePrice {
        self.0.map_or(StoragePrice(u64::MAX), Credits::storage_price)
    }
}

impl TryFrom<String> for MaxPrice {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text.trim().is_empty() { Ok(Self(None)) } else { Credits::try_from(text).map(|c| Self(Some(c))) }
    }
}

impl From<MaxPrice> for String {
    fn from(price: MaxPrice) -> Self {
        price.0.map(String::from).unwrap_or_default()
    }
}

/// A code, written `k+parity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Code(pub Geometry);

impl FromStr for Code {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a code; write data+parity, for instance 4+8 or 10+20");
        let (k, parity) = text.split_once('+').ok_or_else(wrong)?;
        let number = |s: &str| s.trim().parse::<usize>().map_err(|_| wrong());
        Geometry::new(number(k)?, number(parity)?).map(Self).map_err(|e| e.to_string())
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.0.k(), self.0.parity())
    }
}

impl TryFrom<String> for Code {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Code> for String {
    fn from(code: Code) -> Self {
        code.to_string()
    }
}
