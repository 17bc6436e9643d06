// Downloads: the files of a job's output by folder, and code that reads them.

import { get, jobPath, query, session } from "../api.js";
import { byId, h } from "../dom.js";
import { bytes, count } from "../format.js";

const MAX_SHOWN = 200;
const MAX_OPEN = 10; // files of a folder that is open at first
const FOLDERS = {
  pruned: "the training data", scores: "scores of every sample and token", quadrants: "the decision on every sample",
  rejected: "records that could not be used", tokenizer: "of the model", "": "manifest, report and statistics",
};

export const showFiles = async (job) => {
  byId("archive").href = jobPath(job.id, "archive");
  byId("archive-scores").href = jobPath(job.id, "archive") + query({ scores: true });
  byId("report").href = jobPath(job.id, "report");
  byId("report").hidden = job.spec.prune === null;
  const [files, user] = await Promise.all([get(jobPath(job.id, "files")), session()]);
  const folders = Map.groupBy(files, ({ path }) => (path.includes("/") ? path.slice(0, path.indexOf("/")) : ""));
  const order = Object.keys(FOLDERS);
  const sorted = [...folders].sort(([a], [b]) => order.indexOf(a) - order.indexOf(b));
  byId("file-folders").replaceChildren(...sorted.map(([name, inside]) => folderDetails(job, name, inside)));
  byId("snippets").replaceChildren(...snippets(job, user.needs_token));
};

const folderDetails = (job, name, files) => {
  const size = files.reduce((sum, file) => sum + file.size_bytes, 0);
  const rows = files.reduce((sum, file) => sum + (file.rows ?? 0), 0);
  const summary = h("summary", {},
    h("b", {}, name ? `${name}/` : "Other files"),
    h("span", {}, `${count(files.length)} ${files.length === 1 ? "file" : "files"}`),
    rows > 0 && h("span", {}, `${count(rows)} rows`),
    h("span", {}, bytes(size)),
    h("span", { class: "muted" }, FOLDERS[name]));
  const isOpen = name === "pruned" && files.length <= MAX_OPEN;
  const details = h("details", { class: "folder-of-files", open: isOpen }, summary);
  const fill = () => {
    if (details.childElementCount > 1) return;
    details.append(fileTable(job, files.slice(0, MAX_SHOWN)));
    if (files.length <= MAX_SHOWN) return;
    const rest = `${count(files.length - MAX_SHOWN)} more files. The code below reads all of them.`;
    details.append(h("p", { class: "under muted" }, rest));
  };
  if (details.open) fill();
  details.addEventListener("toggle", fill);
  return details;
};

const fileTable = (job, files) => {
  const head = ["File", "Rows", "Size", "SHA-256"].map((name) => h("th", { scope: "col" }, name));
  const region = { class: "scroll", tabindex: "0", role: "region", "aria-label": "Files" };
  return h("div", region, h("table", {},
    h("thead", {}, h("tr", {}, head)),
    h("tbody", {}, files.map((file) => fileRow(job, file)))));
};

const fileRow = (job, file) => {
  const href = jobPath(job.id, "files", ...file.path.split("/").map(encodeURIComponent));
  return h("tr", {},
    h("th", { scope: "row" }, h("a", { href, download: file.path.split("/").at(-1) }, file.path)),
    h("td", {}, count(file.rows)),
    h("td", {}, bytes(file.size_bytes)),
    h("td", {}, file.sha256 ? h("code", { title: file.sha256, class: "digest" }, file.sha256) : "–"));
};

// --- code that reads the output from this server. A token comes from the environment, so no shell history contains it.

const snippets = (job, needsToken) => {
  const base = location.origin + jobPath(job.id);
  const curl = needsToken ? 'curl -fsSL -H "Authorization: Bearer $QTUNE_TOKEN"' : "curl -fsSL";
  const target = `qtune-${job.id}`;
  const isScored = job.spec.prune === null;
  const folder = isScored ? "scores" : "pruned";
  const url = isScored ? `'${base}/archive?scores=true'` : `${base}/archive`;
  const archive = `mkdir -p ${target} && ${curl} ${url} | tar x -C ${target}`;
  const note = needsToken && "Set QTUNE_TOKEN to an API token first.";
  return [
    snippet("with-curl", "curl", archive, note),
    snippet("with-pyarrow", "Python, pyarrow", pyarrowCode(base, folder, needsToken), note),
    snippet("with-datasets", "Python, datasets", datasetsCode(archive, target, folder), note),
    snippet("with-duckdb", "duckdb", duckdbCode(archive, target, folder), note),
  ];
};

const snippet = (id, name, text, note) => h("div", { class: "snippet" },
  h("h4", {}, name), note && h("p", { class: "small muted" }, note),
  h("div", { class: "command" },
    h("code", { id, tabindex: "0" }, text),
    h("button", { type: "button", "data-copy": id, "aria-label": `Copy the code for ${name}` }, "Copy")));

// ParquetFile, because read_table aborts at the end of one program in twenty (pyarrow 26, threads that still run).
const pyarrowCode = (base, folder, needsToken) => [
  `import json${needsToken ? ", os" : ""}, urllib.request`,
  "import pyarrow as pa, pyarrow.parquet as pq",
  "",
  `job = "${base}"`,
  ...(needsToken ? [
    'headers = {"Authorization": f"Bearer {os.environ[\'QTUNE_TOKEN\']}"}',
    "read = lambda path: urllib.request.urlopen(urllib.request.Request(job + path, headers=headers)).read()",
  ] : ["read = lambda path: urllib.request.urlopen(job + path).read()"]),
  `names = [f["path"] for f in json.loads(read("/files")) if f["path"].startswith("${folder}/")]`,
  'table = pa.concat_tables(pq.ParquetFile(pa.BufferReader(read(f"/files/{name}"))).read() for name in names)',
].join("\n");

const datasetsCode = (archive, target, folder) => [
  `# ${archive}`,
  "from datasets import load_dataset",
  "",
  `data = load_dataset("parquet", data_files="${target}/${folder}/*.parquet", split="train")`,
].join("\n");

const duckdbCode = (archive, target, folder) => {
  const column = folder === "pruned" ? "qtune.quadrant" : "truncated";
  const sql = `SELECT ${column}, count(*) FROM '${target}/${folder}/*.parquet' GROUP BY ALL ORDER BY ALL`;
  return `${archive}\nduckdb -c "${sql}"`;
};
