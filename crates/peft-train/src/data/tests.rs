use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn parsed(name: &str, text: impl Into<Vec<u8>>) -> Result<Vec<Row>> {
    let path = PathBuf::from(name);
    read(layout_of(&path)?, text.into())
}

/// What a layout of text makes of bytes.
fn read(layout: &Layout, bytes: Vec<u8>) -> Result<Vec<Row>> {
    let path = PathBuf::from(format!("x.{}", layout.extension));
    let Reader::Text(parse) = layout.reader else { panic!("{layout:?} is no layout of text") };
    layout.some(&path, parse_text(&path, bytes, parse)?)
}

fn text_layouts() -> impl Strategy<Value = &'static Layout> {
    let is_text = |layout: &&Layout| matches!(layout.reader, Reader::Text(_));
    prop::sample::select(LAYOUTS.iter().filter(is_text).collect::<Vec<_>>())
}

/// The rows of a file: line and columns.
fn check(name: &str, text: &str, expected: &[(usize, Value)]) {
    let rows = parsed(name, text).unwrap();
    let found: Vec<_> = rows.into_iter().map(|row| (row.line, Value::Object(row.fields))).collect();
    assert_eq!(found, expected);
}

fn refused(name: &str, text: impl Into<Vec<u8>>) -> String {
    parsed(name, text).unwrap_err().to_string()
}

#[test]
fn tab_separated_cells_are_never_quoted() {
    let rows = [(2, json!({"text": "say \"hi\", you", "label": "a"})), (3, json!({"text": "", "label": "b"}))];
    check("x.tsv", "text\tlabel\nsay \"hi\", you\ta\n\tb\n", &rows);
    check("x.TSV", "\u{feff}text\tlabel\r\nsay \"hi\", you\ta\r\n\tb\r\n\r\n", &rows);
}

#[test]
fn comma_separated_cells_may_be_quoted() {
    let text = "text,label\r\n\"one, \"\"two\"\"\nthree\",a\r\n\r\nfour,b";
    check(
        "x.csv",
        text,
        &[(2, json!({"text": "one, \"two\"\nthree", "label": "a"})), (5, json!({"text": "four", "label": "b"}))],
    );
}

#[test]
fn the_index_that_pandas_writes_is_left_alone() {
    check("x.csv", ",text\n0,a\n1,b\n", &[(2, json!({"text": "a"})), (3, json!({"text": "b"}))]);
    check("x.tsv", "\ttext\n0\ta\n", &[(2, json!({"text": "a"}))]);
}

#[test]
fn json_lines_are_read_from_a_stream() {
    let rows = read_stream("\u{feff}{\"a\": 1}\n\n{\"a\": 2}\n".as_bytes(), "standard input", None).unwrap();
    assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 3]);
    let message = |text: &str| read_stream(text.as_bytes(), "standard input", None).unwrap_err().to_string();
    assert!(message("{text\n").starts_with("standard input:1: not valid JSON"));
    assert!(message("text\n").contains("name its format, such as --format csv"));
    let read = |text: &str, format| read_stream(text.as_bytes(), "standard input", Some(format));
    assert_eq!(read("a,b\n1,2\n", "csv").unwrap()[0].text("b").unwrap(), "2");
    assert!(read("a", "parquet").unwrap_err().to_string().contains("unknown format `parquet`; supported are tsv, csv"));
    assert!(message("\n").starts_with("standard input: no rows"));
}

#[test]
fn lines_of_plain_text_that_make_one_row_are_told_of() {
    let note = |text: &str| note_on_paragraphs(&parsed("x.txt", text).unwrap());
    assert!(
        note("one\ntwo\nthree\n").unwrap().starts_with("x.txt: 3 lines are 1 row: a row of a .txt file is a paragraph")
    );
    assert_eq!(note("one\n\ntwo\n"), None);
    assert_eq!(note_on_paragraphs(&parsed("x.jsonl", r#"{"text": "a\nb"}"#).unwrap()), None);
}

#[test]
fn a_pointer_of_git_lfs_is_no_data() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["x.parquet", "x.jsonl", "x.csv"] {
        let path = folder.path().join(name);
        std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n").unwrap();
        let message = read_rows(&path).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains("git lfs pull"), "{message}");
    }
}

#[test]
fn a_line_of_jsonl_is_a_row() {
    check(
        "x.jsonl",
        "{\"text\": \"a\", \"n\": 1}\n\n{\"text\": [\"b\"]}",
        &[(1, json!({"text": "a", "n": 1})), (3, json!({"text": ["b"]}))],
    );
}

#[test]
fn a_json_array_holds_rows() {
    check("x.json", "[{\"a\": 1},\n\n {\"a\": 2}]", &[(1, json!({"a": 1})), (2, json!({"a": 2}))]);
}

#[test]
fn a_question_of_squad_is_a_row() {
    let squad = json!({"version": "v2.0", "data": [{"title": "T", "paragraphs": [{"context": "C", "qas": [
        {"id": "1", "question": "Q?", "answers": [{"text": "C", "answer_start": 0}]},
        {"id": "2", "question": "R?", "answers": [], "is_impossible": true},
    ]}]}]});
    check(
        "x.json",
        &squad.to_string(),
        &[
            (
                1,
                json!({"question": "Q?", "context": "C", "answers": [{"text": "C", "answer_start": 0}], "id": "1", "title": "T"}),
            ),
            (
                2,
                json!({"question": "R?", "context": "C", "answers": [], "id": "2", "title": "T", "is_impossible": true}),
            ),
        ],
    );
}

#[test]
fn sentences_of_conll_lie_between_empty_lines() {
    let text = "-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\n \nNew York\tB-LOC\n";
    check(
        "x.conll",
        text,
        &[
            (3, json!({"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]})),
            (7, json!({"tokens": ["New York"], "tags": ["B-LOC"]})),
        ],
    );
}

#[test]
fn only_the_words_of_conllu_count() {
    let text = "# text = don't\n1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_\n1\tdo\tdo\tAUX\tVBP\t_\t_\t_\t_\t_\n\
                2\tn't\tnot\tPART\tRB\t_\t_\t_\t_\t_\n2.1\tx\tx\tX\tX\t_\t_\t_\t_\t_\n\n";
    check("x.conllu", text, &[(3, json!({"tokens": ["do", "n't"], "tags": ["AUX", "PART"], "xpos": ["VBP", "RB"]}))]);
}

#[test]
fn a_paragraph_of_text_is_a_row() {
    check("x.txt", "one\ntwo\n\n \nthree\n", &[(1, json!({"text": "one\ntwo"})), (5, json!({"text": "three"}))]);
}

#[test]
fn bad_rows_are_named_with_their_lines() {
    assert_eq!(
        refused("x.tsv", "a\tb\n1\t2\n3\n4\t5\t6\n"),
        "x.tsv:3: 1 cell, but the header has 2 (a, b)\nx.tsv:4: 3 cells, but the header has 2 (a, b)"
    );
    assert_eq!(
        refused("x.csv", "a,b\n\"1\n\n\",2\n3\n"),
        "x.csv:5: 1 cell, but the header has 2 (a, b)",
        "a quoted cell of several lines counts as such"
    );
    assert_eq!(
        refused("x.csv", "a,b\n1,2\n\"3,4\n5,6\n"),
        "x.csv:3: an odd number of quotes: one is never closed, or one inside a cell is not doubled"
    );
    assert_eq!(
        refused("x.jsonl", "{}\n[1]\n{\"a\" 1}\n"),
        "x.jsonl:2: a line should hold a JSON object, found an array\nx.jsonl:3: not valid JSON: expected `:` (column 6)"
    );
    assert_eq!(refused("x.conll", "a O\nb\n"), "x.conll:2: a word and its tag should stand here, found `b`");
    assert_eq!(refused("x.conllu", "1\ta\n"), "x.conllu:1: 2 of 10 tab-separated columns");
    let squad = json!({"data": [{"paragraphs": [{"context": "C", "qas": [{"question": "Q"}, {"id": 1}]}, {}]}, {}]});
    assert_eq!(
        refused("x.json", squad.to_string()),
        "x.json:2: data[0].paragraphs[0].qas[1] has no text `question`\n\
         x.json:3: data[0].paragraphs[1] should have the text `context` and the list `qas`\n\
         x.json:3: data[1] has no list `paragraphs`"
    );
}

#[test]
fn ten_bad_rows_are_named_and_the_others_counted() {
    let message = refused("x.tsv", format!("a\tb\n{}", "1\n".repeat(12)));
    assert_eq!(message.lines().count(), 11, "{message}");
    assert!(message.ends_with("x.tsv:11: 1 cell, but the header has 2 (a, b)\nand 2 more"), "{message}");
}

#[test]
fn broken_files_say_what_is_broken() {
    let check = |name: &str, text: &[u8], part: &str| {
        let message = refused(name, text);
        assert!(message.starts_with(name) && message.contains(part), "{message}");
    };
    check("x.tsv", b"", "its first line should name the columns");
    check("x.csv", b"\n", "its first line should name the columns");
    check("x.tsv", b"a\tb\n", "no rows");
    check("x.jsonl", b"\n", "no rows; a .jsonl file holds one JSON object a line");
    check("x.json", b"[]", "no rows");
    check("x.json", b"{}", "found an object");
    check("x.json", b"[1", "not valid JSON");
    check("x.conll", b"-DOCSTART- O\n", "no rows");
    check("x.tsv", b"a\t\n1\t2\n", "no name for column 2");
    check("x.csv", b"a,a\n1,2\n", "column `a` twice");
    check("x.tsv", b"a\tb\n1\t\xff\n", "line 2 is not UTF-8");
    check("x.jsnl", b"", "did you mean `.jsonl`?");
    check("x", b"", "no extension; supported are");
    check("x.feather", b"", ".conll: a word and its tag a line");
}

#[test]
fn files_are_read_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.tsv");
    assert!(matches!(read_rows(&path), Err(Error::NotFound { .. })));
    std::fs::write(&path, "text\nhello\n").unwrap();
    let rows = read_rows(&path).unwrap();
    assert_eq!((rows[0].text("text").unwrap(), &*rows[0].file), ("hello", path.as_path()));
}

#[test]
fn a_folder_holds_the_parts_of_a_data_set() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let texts = |part| -> Result<Vec<String>> {
        Ok(read_part(folder.path(), part)?.iter().map(|row| row.text("text").unwrap().to_owned()).collect())
    };
    let message = texts(Part::Train).unwrap_err().to_string();
    assert!(message.contains("no train.* in one of .tsv"), "{message}");
    write("train-00001-of-00002.jsonl", "{\"text\": \"b\"}");
    write("train-00000-of-00002.jsonl", "{\"text\": \"a\"}");
    write("training-notes.txt", "no data");
    assert_eq!(texts(Part::Train).unwrap(), ["a", "b"]);
    assert!(!has_part(folder.path(), Part::Validation).unwrap());
    write("dev.txt", "c");
    assert_eq!((texts(Part::Validation).unwrap(), texts(Part::Test).unwrap()), (vec!["c".into()], vec!["c".into()]));
    write("test.tsv", "text\nd\n");
    assert_eq!(texts(Part::Test).unwrap(), ["d"]);
    write("test.csv", "text\ne\n");
    let message = texts(Part::Test).unwrap_err().to_string();
    assert!(message.contains("several layouts (test.csv, test.tsv)"), "{message}");
}

/// A table of 1 to 4 columns and some rows; no cell holds what `tsv` cannot.
fn table() -> impl Strategy<Value = (usize, Vec<Vec<String>>)> {
    (1..5_usize).prop_flat_map(|columns| {
        let cell = "[^\t\n\r]{0,8}[a-z\"',é]";
        (Just(columns), prop::collection::vec(prop::collection::vec(cell, columns), 1..8))
    })
}

fn cells(rows: Vec<Row>) -> Vec<Vec<String>> {
    rows.iter().map(|row| row.fields.values().map(|cell| cell.as_str().unwrap().to_owned()).collect()).collect()
}

proptest! {
    #[test]
    fn readers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), layout in text_layouts()) {
        let _ = read(layout, bytes);
    }

    #[test]
    fn readers_never_panic_on_text(text in "[a1\"',\t\n\r{}\\[\\]:. #é-]{0,80}", layout in text_layouts()) {
        let _ = read(layout, text.into_bytes());
    }

    #[test]
    fn tables_round_trip_through_tsv((columns, table) in table()) {
        let header: Vec<String> = (0..columns).map(|column| format!("c{column}")).collect();
        let lines: Vec<String> = [&header].into_iter().chain(&table).map(|row| row.join("\t") + "\n").collect();
        prop_assert_eq!(cells(parsed("x.tsv", lines.concat()).unwrap()), table);
    }

    #[test]
    fn tables_round_trip_through_csv((columns, mut table) in table(), extra in "[\",\n\r\t]{0,4}") {
        // What `tsv` cannot hold, a quoted cell can.
        table[0][0].push_str(&extra);
        let mut writer = ::csv::Writer::from_writer(Vec::new());
        writer.write_record((0..columns).map(|column| format!("c{column}"))).unwrap();
        for row in &table {
            writer.write_record(row).unwrap();
        }
        prop_assert_eq!(cells(parsed("x.csv", writer.into_inner().unwrap()).unwrap()), table);
    }

    #[test]
    fn objects_round_trip_through_jsonl((_, table) in table()) {
        let object = |row: &Vec<String>| -> Map<String, Value> {
            row.iter().enumerate().map(|(column, cell)| (format!("c{column}"), cell.as_str().into())).collect()
        };
        let lines: String = table.iter().map(|row| format!("{}\n", Value::Object(object(row)))).collect();
        prop_assert_eq!(cells(parsed("x.jsonl", lines).unwrap()), table);
    }
}
