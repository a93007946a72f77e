/** Prints the closing line `N passed, N failed, N skipped` that CI reads, after everything else jest prints. */
module.exports = class SummaryReporter {
  onRunComplete(_contexts, results) {
    const failed = results.numFailedTests + results.numRuntimeErrorTestSuites
    const line = `${results.numPassedTests} passed, ${failed} failed, ${results.numPendingTests} skipped\n`
    process.once('exit', () => process.stdout.write(line))
  }
}
