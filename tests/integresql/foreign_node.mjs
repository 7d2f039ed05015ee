// A full cycle with the npm package @devoxa/integresql-client, unmodified.
//
// Arguments: where it is installed, URL of the server, globs to hash. PostgreSQL is talked to by the test that started
// this: it reads the address of a database from a line, and answers with a line when it is done.
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'
import { join } from 'node:path'

const [installed, url, ...globs] = process.argv.slice(2)
const { IntegreSQLClient } = createRequire(join(installed, 'index.js'))('@devoxa/integresql-client')
const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]()

async function ask(what, config) {
  process.stdout.write(JSON.stringify({ what, url: client.databaseConfigToConnectionUrl(config), config }) + '\n')
  return JSON.parse((await answers.next()).value)
}

function check(condition, what) {
  if (!condition) throw new Error(what)
}

const client = new IntegreSQLClient({ url })
const hash = await client.hashFiles(globs)

let failed = false
try {
  await client.initializeTemplate(hash, async () => {
    throw new Error('half-way')
  })
} catch (error) {
  failed = error.message === 'half-way'
}
check(failed, 'the error of the set-up is thrown')

await client.initializeTemplate(hash, (config) => ask('migrate', config))
await client.initializeTemplate(hash, () => {
  throw new Error('is set up twice')
})

const first = await client.api.getTestDatabase(hash)
check((await ask('change', first.database.config)).join() === 'Mario', 'the first is pristine')
await client.api.recreateTestDatabase(hash, first.id)

const second = await client.api.getTestDatabase(hash)
check(second.database.templateHash === hash, 'it is told of which hash it is')
check((await ask('look', second.database.config)).join() === 'Mario', 'the second is pristine')
await client.api.reuseTestDatabase(hash, second.id)
check((await ask('look', await client.getTestDatabase(hash))).join() === 'Mario', 'the third is pristine')

await client.api.discardTemplate(hash)
let status = 0
try {
  await client.getTestDatabase(hash)
} catch (error) {
  status = error.responseStatus
}
check(status === 404, 'a discarded template is unknown')
await client.api.discardAllTemplates()
process.exit(0)
