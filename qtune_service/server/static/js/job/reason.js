// Why a sample was kept or dropped, in words; the rule is selection/plane.py's.

import { number, percent } from "../format.js";

export const reason = (sample, plane) => {
  const verb = sample.kept ? "Kept" : "Dropped";
  if (plane.strategy) return `${verb} by another strategy than Q-Tuning: ${plane.strategy}.`;
  if (plane.quadrant_rule) return `${verb}: the rule ${plane.quadrant_rule} labelled it ${sample.quadrant}.`;
  const { quadrant, error_rank: error, entropy_rank: entropy } = sample;
  const { name, fate } = plane.quadrant_counts.find(({ label }) => label === quadrant);
  const scores = `perplexity ${number(sample.perplexity)} (rank ${error.toFixed(3)}), entropy ${number(sample.mean_entropy)} (rank ${entropy.toFixed(3)})`;
  const where = WHERE[quadrant];
  return `${verb}: ${quadrant} ${name}, ${fate}. ${where}: ${scores}. ${sample.kept ? masked(sample) : enters(sample, plane)}`.trim();
};

const WHERE = {
  Q1: "In neither kept corner, and high on both axes together",
  Q2: "The model is wrong about it, and sure",
  Q3: "In neither kept corner, and low on both axes together",
  Q4: "The model is right about it, and unsure",
};

const masked = (sample) =>
  (sample.tokens_removed ? `${number(sample.tokens_removed)} of its ${number(sample.num_tokens)} tokens are taken out of the loss, those that score highest.` : "All its tokens are trained on.");

// The least keep ratio of the curve that lets it in.
const enters = ({ error_rank: p, entropy_rank: e }, plane) => {
  const entry = Math.min(Math.max(1 - p, e), Math.max(p, 1 - e));
  const points = plane.what_if?.points;
  const at = points?.alpha.findIndex((alpha) => alpha >= entry) ?? -1;
  return at < 0 ? "" : `It would be kept from a keep ratio of about ${percent(points.sample_keep_ratio[at], 1)} on.`;
};
