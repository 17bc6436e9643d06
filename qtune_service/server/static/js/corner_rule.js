// The corner rule of the method (selection/plane.py).

// Return a sample's entry alpha: it is kept where alpha is at least this. The ranks are in (0, 1).
export const entryAlpha = (errorRank, entropyRank) =>
  Math.min(Math.max(1 - errorRank, entropyRank), Math.max(errorRank, 1 - entropyRank));
