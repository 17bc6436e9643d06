// The explanation why a sample was kept or dropped.

import { entryAlpha } from "../corner_rule.js";
import { count, number, percent } from "../format.js";

const REASONS = {
  Q1: "In neither kept corner, with high ranks",
  Q2: "The model is wrong about it, and sure",
  Q3: "In neither kept corner, with low ranks",
  Q4: "The model is right about it, and unsure",
};

export const explain = (sample, plane) => {
  const decision = sample.kept ? "Kept" : "Dropped";
  if (plane.strategy) return `${decision} by another strategy than Q-Tuning: ${plane.strategy}.`;
  if (plane.quadrant_rule) return `${decision}: the rule ${plane.quadrant_rule} labelled it ${sample.quadrant}.`;
  const { quadrant, error_rank: errorRank, entropy_rank: entropyRank } = sample;
  const { name } = plane.quadrant_counts.find(({ label }) => label === quadrant);
  const scores = `perplexity ${number(sample.perplexity)} (rank ${errorRank.toFixed(3)}), `
    + `entropy ${number(sample.mean_entropy)} (rank ${entropyRank.toFixed(3)})`;
  const consequence = sample.kept ? tokensText(sample) : ratioText(sample, plane);
  return `${decision}: ${quadrant} ${name}. ${REASONS[quadrant]}: ${scores}. ${consequence}`.trim();
};

const tokensText = ({ tokens_removed: removed, num_tokens: total }) => (removed
  ? `${count(removed)} of its ${count(total)} tokens are removed from the loss: those with the highest scores.`
  : "All its tokens are trained on.");

// The lowest keep ratio of the curve at which the sample is kept.
const ratioText = (sample, plane) => {
  const entry = entryAlpha(sample.error_rank, sample.entropy_rank);
  const points = plane.what_if?.points;
  const index = points?.alpha.findIndex((alpha) => alpha >= entry) ?? -1;
  return index < 0 ? "" : `It would be kept at keep ratios from about ${percent(points.sample_keep_ratio[index], 1)}.`;
};
