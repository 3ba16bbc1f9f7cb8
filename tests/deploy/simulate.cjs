// Evaluates requests against IAM policies: an array of simulations on standard input, an array of outcomes on standard output.
const { createRequire } = require('node:module')

// The package is not beside this file.
const { runSimulation } = createRequire(process.env.NODE_TOOLS + '/')('@cloud-copilot/iam-simulate')

async function main() {
  const chunks = []
  for await (const chunk of process.stdin) chunks.push(chunk)
  const outcomes = []
  for (const simulation of JSON.parse(Buffer.concat(chunks))) {
    const response = await runSimulation(simulation, {})
    outcomes.push(
      response.resultType === 'error'
        ? { error: response.errors }
        : { result: response.overallResult, ignored: response.result?.ignoredContextKeys ?? [] }
    )
  }
  process.stdout.write(JSON.stringify(outcomes))
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
