//! The present moment, as Python's `strftime` writes it.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// The present moment (UTC) in the words of `strftime`.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    strftime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()), format)
}

fn strftime(seconds: u64, format: &str) -> Result<String, Error> {
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March end with the leap day; an era is 400 of them. Day 0 is the first of March of year 0.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let name = |names: &[&'static str], at: u64| usize::try_from(at).ok().and_then(|at| names.get(at)).copied();
    let month_name = name(&MONTHS, month - 1).unwrap_or_default();
    let day_name = name(&DAYS, (days + 3) % 7).unwrap_or_default();

    let mut written = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            written.push(letter);
            continue;
        }
        let field = match letters.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name.chars().take(3).collect(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name.chars().take(3).collect(),
            Some('e') => format!("{day:2}"),
            Some('j') => format!("{:03}", day_of_calendar(year, month, day)),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{:02}:{:02}:{:02}", clock / 3_600, clock % 3_600 / 60, clock % 60),
            Some('I') => format!("{:02}", (clock / 3_600 + 11) % 12 + 1),
            Some('p') => if clock < 43_200 { "AM" } else { "PM" }.to_owned(),
            // Without the zero before.
            Some('-') => match letters.next() {
                Some('d') => day.to_string(),
                Some('m') => month.to_string(),
                Some('H') => (clock / 3_600).to_string(),
                Some('I') => ((clock / 3_600 + 11) % 12 + 1).to_string(),
                other => return Err(unknown(&format!("-{}", other.unwrap_or(' ')))),
            },
            Some('H') => format!("{:02}", clock / 3_600),
            Some('M') => format!("{:02}", clock % 3_600 / 60),
            Some('S') => format!("{:02}", clock % 60),
            Some('%') => "%".to_owned(),
            other => return Err(unknown(&other.unwrap_or(' ').to_string())),
        };
        written.push_str(&field);
    }
    Ok(written)
}

fn unknown(code: &str) -> Error {
    let problem = format!("strftime_now knows no %{code} (it knows YymdejBbAaHIMSpFT and -d, -m, -H, -I)");
    Error::new(ErrorKind::InvalidOperation, problem)
}

/// The number of the day in its year, from 1.
fn day_of_calendar(year: u64, month: u64, day: u64) -> u64 {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let shift = if month <= 2 { 0 } else { 2 - u64::from(is_leap) };
    (367 * month - 362) / 12 - shift + day
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(strftime(0, "%d %b %Y %A").unwrap(), "01 Jan 1970 Thursday");
        assert_eq!(strftime(951_782_400, "%Y-%m-%d %a").unwrap(), "2000-02-29 Tue");
        assert_eq!(strftime(1_735_689_599, "%d %B %y %H:%M:%S%%").unwrap(), "31 December 24 23:59:59%");
        assert_eq!(
            strftime(951_782_400, "%j %-d %-m %e %I %p %F %T").unwrap(),
            "060 29 2 29 12 AM 2000-02-29 00:00:00"
        );
        assert_eq!(strftime(1_735_689_599, "%j %I %-I %p").unwrap(), "366 11 11 PM");
        assert!(strftime(0, "%Q").unwrap_err().to_string().contains("%Q"));
    }
}
