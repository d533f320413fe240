use super::*;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;
use std::path::PathBuf;

fn file(folder: &tempfile::TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn gzipped(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn rows(path: &Path, quotes: Quotes) -> Result<(Vec<String>, Vec<Row>)> {
    let mut table = Table::open(path, quotes)?;
    let columns = table.columns().to_vec();
    Ok((columns, table.next_rows(usize::MAX)?))
}

fn texts(row: &Row) -> Vec<String> {
    row.cells.iter().map(|cell| cell.text().unwrap_or_else(|| format!("{cell:?}"))).collect()
}

#[test]
fn each_format_gives_the_same_rows_plain_and_gzipped() {
    let folder = tempfile::tempdir().unwrap();
    let tsv = "label\ttext\npos\tsays \"hi\", twice\r\n\nneg\t漢字 — no\n";
    let csv = "label,text\npos,\"says \"\"hi\"\", twice\"\n\nneg,漢字 — no";
    let jsonl =
        "{\"label\": \"pos\", \"text\": \"says \\\"hi\\\", twice\"}\n\n{\"text\": \"漢字 — no\", \"label\": \"neg\"}\n";
    for (name, content) in [("a.tsv", tsv), ("a.csv", csv), ("a.jsonl", jsonl)] {
        for is_gzipped in [false, true] {
            let bytes = if is_gzipped { gzipped(content.as_bytes()) } else { content.as_bytes().to_vec() };
            let path = file(&folder, &format!("{name}{}", if is_gzipped { ".gz" } else { "" }), bytes);
            let (columns, rows) = rows(&path, Quotes::InCsv).unwrap();
            assert_eq!(columns, ["label", "text"]);
            assert_eq!(
                rows.iter().map(texts).collect::<Vec<_>>(),
                [["pos", "says \"hi\", twice"], ["neg", "漢字 — no"]]
            );
            assert_eq!(rows[1].number, 2);
            assert_eq!(rows[1].line, if name == "a.jsonl" { 3 } else { 4 }, "{name}");
        }
    }
    let (columns, rows) = rows(&file(&folder, "a.txt", "\u{FEFF}one\ttab\r\n\ntwo"), Quotes::InCsv).unwrap();
    assert_eq!(
        (columns, rows.iter().map(texts).collect::<Vec<_>>()),
        (vec!["text".into()], vec![vec!["one\ttab".into()], vec!["two".into()]])
    );
}

#[test]
fn quoted_fields_hold_delimiters_and_line_breaks_where_quotes_count() {
    let folder = tempfile::tempdir().unwrap();
    let csv = file(&folder, "a.csv", "a,b\n\"one\nline\",\"x,y\"\nlast,z\n");
    let rows_of = |path, quotes| rows(path, quotes).unwrap().1.iter().map(texts).collect::<Vec<_>>();
    assert_eq!(rows_of(&csv, Quotes::InCsv), [["one\nline", "x,y"], ["last", "z"]]);
    assert_eq!(rows(&csv, Quotes::InCsv).unwrap().1[1].line, 4);
    let tsv = file(&folder, "a.tsv", "a\tb\n\"one\ttab\"\tx\n");
    assert_eq!(rows_of(&tsv, Quotes::InTsv), [["one\ttab", "x"]]);
    let message = rows(&tsv, Quotes::InCsv).unwrap_err().to_string();
    assert!(message.contains("row 1 (line 2): 3 fields, but the file has 2 columns"), "{message}");
    let open = file(&folder, "b.tsv", "a\tb\n\"quote\tnever closed\n");
    assert_eq!(rows_of(&open, Quotes::InCsv), [["\"quote", "never closed"]]);
}

#[test]
fn json_values_keep_their_kind_and_nested_keys_are_joined() {
    let folder = tempfile::tempdir().unwrap();
    let json = "{\"n\": 3, \"x\": 0.5, \"b\": true, \"z\": null, \"list\": [\"a\", 1], \"answers\": {\"text\": [\"t\"]}}\n{\"n\": \"4\"}";
    let (columns, rows) = rows(&file(&folder, "a.jsonl", json), Quotes::InCsv).unwrap();
    assert_eq!(columns, ["answers.text", "b", "list", "n", "x", "z"]);
    let cells = &rows[0].cells;
    assert_eq!(cells[0], Cell::List(vec![Cell::Text("t".into())]));
    assert_eq!((cells[1].text().unwrap(), cells[3].text().unwrap()), ("true".into(), "3".into()));
    assert_eq!((cells[3].number(), cells[4].number(), cells[5].number()), (Some(3.0), Some(0.5), None));
    assert_eq!(rows[1].cells[3].number(), Some(4.0));
    assert_eq!(rows[1].cells[0], Cell::Missing);
    assert_eq!(Cell::Text("nan".into()).number(), None);
}

#[test]
fn what_is_wrong_is_said_in_one_line_with_file_and_row() {
    let folder = tempfile::tempdir().unwrap();
    let whole = gzipped("text\none\ntwo\n".repeat(5000).as_bytes());
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for (name, content, expected) in [
        ("a.tsv", &b""[..], "a.tsv: the file is empty"),
        ("b.tsv", b"\n\n", "b.tsv: the file is empty"),
        ("c.tsv", b"text\n", "c.tsv: the file has no rows"),
        ("d.tsv", b"a\tb\n1\t2\n1\n", "d.tsv: row 2 (line 3): 1 fields, but the file has 2 columns"),
        ("e.tsv", b"a\na\n\xFFb\n", "e.tsv: row 2 (line 3): not UTF-8 at byte 0"),
        ("f.csv", b"a,b\nx,\xC3(\n", "f.csv: row 1 (line 2): not UTF-8"),
        (
            "g.jsonl",
            b"{\"a\": 1}\n{\"a\": 1\n",
            "g.jsonl: row 2 (line 2): not JSON: EOF while parsing an object at column 7",
        ),
        ("h.jsonl", b"[1]\n", "h.jsonl: row 1 (line 1): JSON, but not an object"),
        ("i.tsv.gz", b"text\none\n", "i.tsv.gz: broken gz after row 0"),
        ("j.txt.gz", &whole[..whole.len() / 2], "j.txt.gz: broken gz after row"),
        ("k.txt.gz", &flipped, "k.txt.gz: broken gz after row 15000"),
        ("l.csv.gz", &whole[..20], "l.csv.gz: broken gz after row"),
        ("m.tsv", b"a\tb\ta\n1\t2\t3\n", "two columns are called \"a\""),
        ("n.parquet", b"PAR1", "n.parquet: its name does not tell the format of its rows; name it .tsv"),
        ("o.csv", b"a,b\n1,2,3\n", "o.csv: row 1 (line 2): 3 fields, but the file has 2 columns"),
    ] {
        let message = rows(&file(&folder, name, content), Quotes::InCsv)
            .err()
            .unwrap_or_else(|| panic!("{name} read"))
            .to_string();
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
        assert!(!message.contains('\n'), "{message}");
    }
    let missing = rows(Path::new("no/such.tsv"), Quotes::InCsv).unwrap_err().to_string();
    assert!(missing.contains("no/such.tsv: no such file"), "{missing}");
    let table = Table::open(file(&folder, "p.tsv", "id\tlabel\ttext\n1\tx\ty\n"), Quotes::InCsv).unwrap();
    let message = table.column("txet").unwrap_err().to_string();
    assert!(message.contains("no column \"txet\"; it has \"text\", \"id\", \"label\""), "{message}");
}

#[test]
fn gzip_members_after_each_other_are_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = [gzipped(b"text\none\n"), gzipped(b"two\n")].concat();
    let (_, rows) = rows(&file(&folder, "a.tsv.gz", bytes), Quotes::InCsv).unwrap();
    assert_eq!(rows.iter().map(texts).collect::<Vec<_>>(), [["one"], ["two"]]);
}
