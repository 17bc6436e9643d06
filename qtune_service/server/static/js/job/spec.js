// What was asked: as JSON, and as a command that does the same.

import { showCommand } from "../../pictures.js";
import { get } from "../api.js";
import { setText } from "../dom.js";
import { jobPath } from "./actions.js";

export const showSpec = async (job) => {
  setText(document.getElementById("spec-json"), JSON.stringify(job.spec, null, 2));
  document.getElementById("same-note").hidden = !job.spec.input.paths.some((path) => path.startsWith("dataset://"));
  const { command } = await get(jobPath(job, "command"));
  const place = document.getElementById("same-command");
  if (command.includes("\n")) setText(place, command);
  else showCommand(place, command);
};
