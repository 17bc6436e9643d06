// What was asked: as JSON, and as a command that does the same.

export const showSpec = (job) => {
  const json = JSON.stringify(job.spec, null, 2);
  document.getElementById("spec-json").textContent = json;
  document.getElementById("same-command").textContent = `cat > job.json <<'END_OF_JOB'\n${JSON.stringify(job.spec)}\nEND_OF_JOB\nqtune run job.json`;
};
