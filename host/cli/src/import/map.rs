//! Which column of a file is which field of a product.

use std::str::FromStr;

/// What a column can mean.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Field {
    Sku,
    Title,
    Description,
    Price,
    CompareAt,
    Floor,
    Stock,
    Tags,
    /// `name=value;name=value`.
    Attributes,
    Image,
    /// One attribute in a column of its own.
    Attribute(String),
}

/// The fields by the names that the command line knows, each with the headings that files in the wild give it.
/// A heading is compared in lower case without spaces, `_` and `-`.
const FIELDS: [(&str, Field, &[&str]); 10] = [
    ("sku", Field::Sku, &["sku", "stockcode", "productcode", "articlenumber", "itemnumber"]),
    ("title", Field::Title, &["title", "name", "productname"]),
    ("description", Field::Description, &["description", "body"]),
    ("price", Field::Price, &["price", "unitprice", "variantprice"]),
    ("compare_at", Field::CompareAt, &["compareat", "compareatprice", "rrp", "listprice"]),
    ("floor", Field::Floor, &["floor", "minimumprice", "minprice"]),
    // Never `quantity`: in a file of invoices that is what someone bought.
    ("stock", Field::Stock, &["stock", "available", "inventory"]),
    ("tags", Field::Tags, &["tags", "categories"]),
    ("attributes", Field::Attributes, &["attributes"]),
    ("image", Field::Image, &["image", "imageurl", "picture"]),
];

/// One `FIELD=COLUMN` of `--map`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ColumnChoice {
    field: Field,
    column: String,
}

impl FromStr for ColumnChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (field, column) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?} is not FIELD=COLUMN, such as price=UnitPrice"))?;
        let field = match field.strip_prefix("attr.") {
            Some(name) if !name.is_empty() => Field::Attribute(name.to_owned()),
            _ => FIELDS.iter().find(|(name, ..)| *name == field).map(|(_, f, _)| f.clone()).ok_or_else(
                || {
                    let known: Vec<_> = FIELDS.iter().map(|(name, ..)| *name).collect();
                    format!("{field:?} is not a field; known are {} and attr.NAME", known.join(", "))
                },
            )?,
        };
        if column.is_empty() {
            return Err(format!("{text:?} names no column"));
        }
        Ok(Self { field, column: column.to_owned() })
    }
}

/// Field by column, for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ColumnMap {
    columns: Vec<(usize, Field)>,
    width: usize,
}

/// Why a file's headings do not make a catalogue.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum MapError {
    #[error("--map names the column {column:?}, and the file has {}", found.join(", "))]
    NoSuchColumn { column: String, found: Vec<String> },
    #[error("no column is the {field}; the file has {}: name it with --map {field}=COLUMN", found.join(", "))]
    Missing { field: &'static str, found: Vec<String> },
}

impl ColumnMap {
    /// Explicit choices first, then headings that speak for themselves. Where a file has a description and no title,
    /// the description is the title: that is how invoices name what was bought.
    pub(crate) fn new(headings: &[String], choices: &[ColumnChoice]) -> Result<Self, MapError> {
        let mut columns: Vec<(usize, Field)> = Vec::new();
        for choice in choices {
            let at = headings.iter().position(|h| h.trim() == choice.column).ok_or_else(|| {
                MapError::NoSuchColumn { column: choice.column.clone(), found: headings.to_vec() }
            })?;
            columns.push((at, choice.field.clone()));
        }
        for (_, field, names) in &FIELDS {
            if columns.iter().any(|(_, f)| f == field) {
                continue;
            }
            let found = headings.iter().position(|h| names.contains(&plain(h).as_str()));
            if let Some(at) = found.filter(|at| !columns.iter().any(|(taken, _)| taken == at)) {
                columns.push((at, field.clone()));
            }
        }
        let has = |field: &Field, columns: &[(usize, Field)]| columns.iter().any(|(_, f)| f == field);
        if !has(&Field::Title, &columns)
            && let Some(description) = columns.iter_mut().find(|(_, f)| *f == Field::Description)
        {
            description.1 = Field::Title;
        }
        for (name, field) in [("sku", Field::Sku), ("title", Field::Title), ("price", Field::Price)] {
            if !has(&field, &columns) {
                return Err(MapError::Missing { field: name, found: headings.to_vec() });
            }
        }
        columns.sort();
        Ok(Self { columns, width: headings.len() })
    }

    /// How many columns a row must have.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn has(&self, field: &Field) -> bool {
        self.columns.iter().any(|(_, f)| f == field)
    }

    pub(crate) fn columns(&self) -> &[(usize, Field)] {
        &self.columns
    }
}

fn plain(heading: &str) -> String {
    // Spreadsheets put a byte-order mark before the first heading.
    heading
        .trim_start_matches('\u{feff}')
        .chars()
        .filter(|c| c.is_ascii_alphanumeric())
        .collect::<String>()
        .to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headings: &[&str], choices: &[&str]) -> Result<Vec<(usize, Field)>, String> {
        let headings: Vec<String> = headings.iter().map(|h| (*h).to_owned()).collect();
        let choices: Vec<ColumnChoice> = choices.iter().map(|c| c.parse().expect("a choice")).collect();
        ColumnMap::new(&headings, &choices).map(|m| m.columns).map_err(|e| e.to_string())
    }

    #[test]
    fn headings_that_speak_for_themselves_need_no_map() {
        let uci = ["InvoiceNo", "StockCode", "Description", "Quantity", "UnitPrice", "CustomerID", "Country"];
        assert_eq!(map(&uci, &[]), Ok(vec![(1, Field::Sku), (2, Field::Title), (4, Field::Price)]));
        let shop = ["\u{feff}SKU", "Title", "Description", "Compare at", "price"];
        let fields = [Field::Sku, Field::Title, Field::Description, Field::CompareAt, Field::Price];
        assert_eq!(map(&shop, &[]), Ok(fields.into_iter().enumerate().collect()));
    }

    #[test]
    fn a_choice_wins_and_a_wrong_one_is_explained() {
        let headings = ["code", "what", "price", "net", "Colour"];
        assert_eq!(
            map(&headings, &["sku=code", "title=what", "price=net", "attr.colour=Colour"]),
            Ok(vec![
                (0, Field::Sku),
                (1, Field::Title),
                (3, Field::Price),
                (4, Field::Attribute("colour".into()))
            ])
        );
        assert_eq!(
            map(&headings, &[]),
            Err("no column is the sku; the file has code, what, price, net, Colour: name it with --map sku=COLUMN".into())
        );
        assert!(
            map(&headings, &["sku=Code"]).is_err_and(|e| e.starts_with("--map names the column \"Code\""))
        );
        assert!(
            "prise=x"
                .parse::<ColumnChoice>()
                .is_err_and(|e| e.starts_with("\"prise\" is not a field; known are sku,"))
        );
        assert!("price".parse::<ColumnChoice>().is_err());
    }
}
