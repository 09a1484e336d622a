// Looks every name of the arguments up, by getaddrinfo and by the resolver of Node's own (c-ares).
const dns = require('dns').promises;
(async () => {
  for (const name of process.argv.slice(2)) {
    await dns.lookup(name, { all: true }).catch(() => {});
    await dns.resolve4(name).catch(() => {});
  }
})();
