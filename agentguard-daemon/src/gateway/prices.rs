//! What tokens cost: an editable table, in whole numbers all the way.

use std::path::Path;

use regex_automata::meta::Regex;
use serde::Deserialize;

use super::usage::Usage;
use crate::policy::limits::{glob_regex, parse_usd};

/// The table that comes along. Providers change their prices: check it, and keep your own.
pub const SHIPPED: &str = include_str!("prices.yaml");

/// Tokens that prices are given for.
const MILLION: u64 = 1_000_000;

/// A table as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    date: String,
    models: Vec<WrittenPrice>,
}

/// Prices in US dollars for a million tokens.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPrice {
    model: String,
    input: String,
    #[serde(default)]
    output: Option<String>,
    #[serde(default)]
    cached_input: Option<String>,
    #[serde(default)]
    cache_write: Option<String>,
    #[serde(default)]
    cache_write_1h: Option<String>,
    /// Prices of calls with more input tokens than this.
    #[serde(default)]
    above: Option<WrittenTier>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTier {
    input_tokens: u64,
    input: String,
    output: String,
    #[serde(default)]
    cached_input: Option<String>,
    #[serde(default)]
    cache_write: Option<String>,
    #[serde(default)]
    cache_write_1h: Option<String>,
}

/// Prices of one token, in [`crate::policy::limits::PICO`] parts of a US dollar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    input: u64,
    cached: u64,
    write: u64,
    write_long: u64,
    output: u64,
}

/// The price of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Price {
    rates: Rates,
    above: Option<(u64, Rates)>,
}

/// All prices.
#[derive(Clone, Debug)]
pub struct Prices {
    date: String,
    list: Vec<(Regex, Price)>,
}

impl Rates {
    fn of(
        input: &str,
        output: Option<&str>,
        cached: Option<&str>,
        write: Option<&str>,
        long: Option<&str>,
    ) -> Result<Self, String> {
        let rate = |text: &str| {
            let million =
                parse_usd(text).map_err(|error| format!("{}; {}", error.message, error.help))?;
            if million % MILLION == 0 {
                Ok(million / MILLION)
            } else {
                Err(format!("`{text}` has more than 6 digits behind the point"))
            }
        };
        let plain = rate(input)?;
        let or_plain = |text: Option<&str>| text.map_or(Ok(plain), rate);
        let write = or_plain(write)?;
        Ok(Self {
            input: plain,
            cached: or_plain(cached)?,
            write,
            write_long: long.map_or(Ok(write), rate)?,
            output: output.map_or(Ok(0), rate)?,
        })
    }

    fn cost(&self, usage: &Usage) -> u64 {
        let written = usage.written.saturating_add(usage.written_long);
        let plain = usage
            .input
            .saturating_sub(usage.cached.saturating_add(written));
        let parts = [
            (plain, self.input),
            (usage.cached, self.cached),
            (usage.written, self.write),
            (usage.written_long, self.write_long),
            (usage.output, self.output),
        ];
        let sum: u128 = parts
            .iter()
            .map(|(tokens, rate)| u128::from(*tokens) * u128::from(*rate))
            .sum();
        u64::try_from(sum).unwrap_or(u64::MAX)
    }

    fn dearest(self, other: Self) -> Self {
        Self {
            input: self.input.max(other.input),
            cached: self.cached.max(other.cached),
            write: self.write.max(other.write),
            write_long: self.write_long.max(other.write_long),
            output: self.output.max(other.output),
        }
    }

    /// The most that so many tokens can cost.
    fn most(&self, input: u64, output: u64) -> u64 {
        let rate = self
            .input
            .max(self.cached)
            .max(self.write)
            .max(self.write_long);
        let sum =
            u128::from(input) * u128::from(rate) + u128::from(output) * u128::from(self.output);
        u64::try_from(sum).unwrap_or(u64::MAX)
    }
}

impl Price {
    /// What a call cost.
    pub fn cost(&self, usage: &Usage) -> u64 {
        match &self.above {
            Some((tokens, rates)) if usage.input > *tokens => rates.cost(usage),
            _ => self.rates.cost(usage),
        }
    }

    /// The most that a call can cost.
    pub fn most(&self, input: u64, output: u64) -> u64 {
        let above = self.above.map_or(0, |(_, rates)| rates.most(input, output));
        self.rates.most(input, output).max(above)
    }

    fn dearest(self, other: Self) -> Self {
        let above = other.above.map_or(other.rates, |it| it.1);
        Self {
            rates: self.rates.dearest(other.rates).dearest(above),
            above: None,
        }
    }
}

impl Prices {
    /// Reads a table.
    pub fn parse(text: &str) -> Result<Self, String> {
        let written: Written = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if written.version != 1 {
            return Err(format!(
                "version {} of the table is not known",
                written.version
            ));
        }
        let mut list = Vec::new();
        for price in &written.models {
            let of = |error: String| format!("`{}`: {error}", price.model);
            let glob = glob_regex(&price.model).map_err(|error| of(error.message))?;
            let rates = Rates::of(
                &price.input,
                price.output.as_deref(),
                price.cached_input.as_deref(),
                price.cache_write.as_deref(),
                price.cache_write_1h.as_deref(),
            );
            let above = price.above.as_ref().map(|tier| {
                let rates = Rates::of(
                    &tier.input,
                    Some(&tier.output),
                    tier.cached_input.as_deref(),
                    tier.cache_write.as_deref(),
                    tier.cache_write_1h.as_deref(),
                );
                rates.map(|rates| (tier.input_tokens, rates))
            });
            list.push((
                Regex::new(&glob).map_err(|error| of(error.to_string()))?,
                Price {
                    rates: rates.map_err(of)?,
                    above: above.transpose().map_err(of)?,
                },
            ));
        }
        Ok(Self {
            date: written.date,
            list,
        })
    }

    /// The configured table, or that of the usual place, or the one that comes along.
    pub fn find(given: Option<&Path>) -> Result<Self, String> {
        let usual = Path::new(super::config::PRICES);
        let path = match given {
            Some(path) => path,
            None if usual.exists() => usual,
            None => return Self::parse(SHIPPED),
        };
        let of = |what: String| format!("the table of prices {}: {what}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| of(error.to_string()))?;
        Self::parse(&text).map_err(of)
    }

    /// Of when it is.
    pub fn date(&self) -> &str {
        &self.date
    }

    /// The price of a model: the first that fits.
    pub fn of(&self, model: &str) -> Option<Price> {
        let fits = |(glob, _): &&(Regex, Price)| glob.is_match(model);
        self.list.iter().find(fits).map(|(_, price)| *price)
    }

    /// Higher than any.
    pub fn dearest(&self) -> Price {
        self.list
            .iter()
            .fold(Price::default(), |dearest, (_, price)| {
                dearest.dearest(*price)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::limits::PICO;

    #[test]
    fn money_is_exact_to_the_token() {
        let prices = Prices::parse(
            "version: 1\ndate: 2026-01-01\nmodels:\n  - {model: \"a-*\", input: 2.50, cached_input: 1.25, output: 10}\n  - {model: b, input: 1.25, output: 10, above: {input_tokens: 200000, input: 2.50, output: 15}}\n  - {model: c, input: 3, cached_input: 0.30, cache_write: 3.75, cache_write_1h: 6, output: 15}\n",
        )
        .unwrap();
        let usage = Usage {
            input: 1000,
            cached: 400,
            output: 100,
            ..Usage::default()
        };
        // 600 at 2.50, 400 at 1.25 and 100 at 10 for a million: 0.003 USD.
        assert_eq!(prices.of("a-1").unwrap().cost(&usage), 3 * PICO / 1000);
        let long = Usage {
            input: 200_001,
            ..Usage::default()
        };
        assert_eq!(prices.of("b").unwrap().cost(&long), 200_001 * 2_500_000);
        let written = Usage {
            input: 100,
            cached: 10,
            written: 20,
            written_long: 30,
            output: 1,
        };
        assert_eq!(
            prices.of("c").unwrap().cost(&written),
            40 * 3_000_000 + 10 * 300_000 + 20 * 3_750_000 + 30 * 6_000_000 + 15_000_000
        );
        assert_eq!(prices.of("d"), None);
        for model in ["a-1", "b", "c"] {
            for usage in [usage, long, written] {
                assert!(prices.dearest().cost(&usage) >= prices.of(model).unwrap().cost(&usage));
                let price = prices.of(model).unwrap();
                assert!(price.most(usage.input, usage.output) >= price.cost(&usage));
            }
        }
    }

    #[test]
    fn the_table_that_comes_along_is_good() {
        let prices = Prices::parse(SHIPPED).unwrap();
        for model in [
            "gpt-4o",
            "gpt-4o-mini",
            "claude-sonnet-4-5",
            "gemini-2.5-pro",
            "text-embedding-3-small",
        ] {
            assert!(prices.of(model).is_some(), "{model}");
        }
        for bad in [
            "version: 2",
            "version: 1\ndate: x\nmodels: [{model: a, input: 1e3}]",
            "version: 1\ndate: x\nmodels: [{model: a, input: 1.1234567}]",
        ] {
            assert!(Prices::parse(bad).is_err(), "{bad}");
        }
    }
}
