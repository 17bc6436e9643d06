// Lines that read a job's product from programs, with this server's address. Where the server wants a token, they take it
// from the environment: it stands in no history.

import { jobPath } from "./actions.js";

export const snippets = (job, needsToken) => {
  const base = location.origin + jobPath(job);
  const curl = needsToken ? 'curl -fsSL -H "Authorization: Bearer $QTUNE_TOKEN"' : "curl -fsSL";
  const place = `qtune-${job.id}`;
  const archive = `mkdir -p ${place} && ${curl} ${base}/archive | tar x -C ${place}`;
  const note = needsToken ? "Put an API token into QTUNE_TOKEN first." : "";
  const folder = job.spec.prune === null ? "scores" : "pruned";
  const all = job.spec.prune === null ? archive.replace("/archive", "'/archive?scores=true'") : archive;
  return [
    { id: "with-curl", name: "curl", text: all, note },
    { id: "with-pyarrow", name: "Python, pyarrow", text: pyarrow(base, folder, needsToken), note },
    { id: "with-datasets", name: "Python, datasets", text: datasets(all, place, folder), note },
    { id: "with-duckdb", name: "duckdb", text: duckdb(all, place, folder), note },
  ];
};

// ParquetFile, not read_table: with the latter one program in twenty aborts at its end (pyarrow 26, threads that still run).
const pyarrow = (base, folder, needsToken) => [
  `import json${needsToken ? ", os" : ""}, urllib.request`,
  "import pyarrow as pa, pyarrow.parquet as pq",
  "",
  `job = "${base}"`,
  needsToken
    ? 'headers = {"Authorization": f"Bearer {os.environ[\'QTUNE_TOKEN\']}"}\nread = lambda path: urllib.request.urlopen(urllib.request.Request(job + path, headers=headers)).read()'
    : "read = lambda path: urllib.request.urlopen(job + path).read()",
  `names = [f["path"] for f in json.loads(read("/files")) if f["path"].startswith("${folder}/")]`,
  'table = pa.concat_tables(pq.ParquetFile(pa.BufferReader(read(f"/files/{name}"))).read() for name in names)',
].join("\n");

const datasets = (archive, place, folder) => [
  `# ${archive}`,
  "from datasets import load_dataset",
  "",
  `data = load_dataset("parquet", data_files="${place}/${folder}/*.parquet", split="train")`,
].join("\n");

const duckdb = (archive, place, folder) => {
  const column = folder === "pruned" ? "qtune.quadrant" : "truncated";
  return `${archive}\nduckdb -c "SELECT ${column}, count(*) FROM '${place}/${folder}/*.parquet' GROUP BY ALL ORDER BY ALL"`;
};
